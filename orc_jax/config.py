"""The whole configuration: one ConfigDict, with its defaults and its form as JSON."""

import json

from ml_collections import ConfigDict, config_dict

from orc_jax import methods, models
from orc_jax.errors import UserError


def default_config(method: str = "orc") -> ConfigDict:
    """The settings of a run with their defaults; `peers` are for the caller to fill."""
    config = ConfigDict()
    config.seed = 0
    config.epochs = 200
    config.batch_size = 128  # images a step, over all devices
    config.eval_batch_size = 500
    config.eval_every = 1  # epochs
    config.checkpoint_every = 1  # epochs
    config.profile = False  # a trace of some steps, in the work directory
    # Batch norm's statistics in training: of the whole batch (the same result on every mesh), or
    # of the images that are at once on one device.
    config.sync_batch_norm = True
    # To need less memory: compute what is within a block twice; take a device's images in so many
    # parts, one after the other.
    config.remat = False
    config.micro_batches = 1
    config.precision = "float32"  # of the networks' activations; all else is float32

    config.data = ConfigDict()
    config.data.name = "digits"
    config.data.dir = "data"
    config.data.train_images = 0  # so many of them, by the seed, each class its share; 0: all
    config.data.pad = 4  # pixels added on each side before the random crop; 0: no crop
    config.data.pad_mode = "zero"
    config.data.flip = True
    config.data.resized_crop = False  # a random part, scaled, in place of the padded crop
    config.data.jitter = 0.0  # brightness, contrast and saturation times 1 ± so much
    config.data.erase = 0.0  # probability that a rectangle becomes the mean colour
    config.data.trivial_augment = False  # one random change of colour or place, of any strength
    config.data.mixup = 0.0  # α of the Beta distribution of the shares; 0: not mixed
    config.data.cutmix = 0.0  # the same; with both, one of them for each batch
    config.data.label_smoothing = 0.0  # ε
    # Of image files: pixels to which they are scaled and cropped (0: they are of one size),
    # what is cut off where there is no second split, "stop" or "skip" at a file that cannot
    # be decoded, where decoded images are kept, and the share of the device's memory that they
    # may take. Beyond that they are read while training, by threads or so many processes, and
    # the shorter side of test images can be scaled to more.
    config.data.size = 0
    config.data.val_share = 0.1
    config.data.on_error = "stop"
    config.data.cache = ""
    config.data.memory = 0.5
    config.data.workers = 0
    config.data.eval_resize = 0

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that split the batch; -1: all that are left
    config.mesh.peer = -1  # devices that split the networks; -1: if data is too, the best ones

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9  # of sgd; β1 of adam and adamw
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "step"
    config.optimizer.decay_epochs = (100, 150)
    config.optimizer.decay = 0.1
    config.optimizer.warmup_epochs = 0.0

    config.method = methods.defaults(method)
    config.peers = ()
    return config


def peer(model: str) -> ConfigDict:
    """A network of the group; what is None follows the run's settings."""
    config = ConfigDict()
    config.model = model
    config.init_from = config_dict.placeholder(str)  # checkpoint to start from
    usual = default_config().optimizer
    config.optimizer = ConfigDict(
        {name: config_dict.placeholder(type(value)) for name, value in usual.items()}
    )
    return config


def copied(config) -> ConfigDict:
    """A copy that shares nothing; ConfigDict's own would share the peers, which are in a tuple."""
    config = config.copy_and_resolve_references()
    config.peers = tuple(peer.copy_and_resolve_references() for peer in config.peers)
    return config


def resolved(config) -> ConfigDict:
    """A copy whose networks have the registry's spelling; `UserError` if one is unknown."""
    config = copied(config)
    for i, member in enumerate(config.peers):
        try:
            member.model = models.canonical(member.model)
        except UserError as error:
            raise UserError(f"config.peers[{i}].model: {error}") from error
    return config


def to_json(config) -> str:
    """The config as it is written to a work directory."""
    return config.to_json(indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """A config that `to_json` wrote."""
    config = ConfigDict(json.loads(text))
    config.peers = tuple(map(ConfigDict, config.peers))
    return config


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """The keys at which two configs differ, each as "key: old value → new value"."""
    old, new = flat(json.loads(to_json(old))), flat(json.loads(to_json(new)))
    return [
        f"{key}: {old.get(key)!r} → {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
    ]


def flat(tree, prefix=""):
    """Nested dicts, and lists of dicts, as one dict with dotted keys."""
    if isinstance(tree, dict):
        items = {f"{prefix}.{key}" if prefix else key: value for key, value in tree.items()}
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        items = {f"{prefix}[{i}]": value for i, value in enumerate(tree)}
    else:
        return {prefix: tree}
    return {k: v for key, value in items.items() for k, v in flat(value, key).items()}
