"""The config of a run: its settings with their defaults, and how it is written as JSON."""

import json
import os
from contextlib import suppress
from typing import Any

from ml_collections import ConfigDict, config_dict

from orc_jax import methods, models
from orc_jax.errors import UserError

# Settings that may differ between the processes of a run: they say what a machine has.
OF_A_MACHINE = ("data.dir", "data.cache", "data.memory", "data.workers", "profile")
# Settings that the default name of a work directory leaves out: how data is read, and how a step is
# computed. (`on_error` is one, because the fingerprint of the data tells which files are left out.)
UNNAMED = (*OF_A_MACHINE, "data.on_error", "remat")
# Settings that change no weights, but for rounding: also how often the run is evaluated or saved.
HARMLESS = (
    *(*UNNAMED, "checkpoint_minutes"),
    *("eval_every", "eval_batch_size", "checkpoint_every"),
)

# Of `to_json`. Schema 1, without a number, is from before data.test_share, whose meaning
# data.val_share had.
SCHEMA = 2
# Settings of methods that earlier versions did not have, where the default is not what they did.
BEFORE = {"pretrained": False}


def default_config(method: str = "orc") -> ConfigDict:
    """Return the settings of a run with their defaults.

    Args:
      method: name of the method, whose own settings become `config.method`.

    Returns:
      The whole config with an empty tuple of `peers`, for the caller to fill with `peer`.

    Raises:
      UserError: there is no such method.
    """
    config = ConfigDict()

    # The run.
    config.seed = 0  # source of all randomness, 0 to 2³¹ − 1
    config.epochs = 200  # passes over the training images
    config.batch_size = 128  # images per training step, over all devices
    config.eval_batch_size = 500  # images per evaluation step, rounded up to fill all devices
    config.eval_every = 1  # epochs between evaluations; the last epoch always has one
    config.checkpoint_every = 1  # epochs between checkpoints; the last and the best always have one
    config.checkpoint_minutes = 30.0  # minutes between checkpoints within an epoch; 0: none
    config.profile = False  # write a trace of steps 6 to 10 to the work directory

    # Computation.
    config.precision = "float32"  # "float32" or "bfloat16", of activations; all else is float32
    config.tf32 = True  # on a GPU, networks round float32 to TF32 before products; losses never do
    config.sync_batch_norm = True  # statistics of the whole batch; False: of each device's images
    config.remat = False  # compute activations again in the backward pass, to save memory
    config.micro_batches = 1  # parts in which a device takes its images, to save memory

    config.data = ConfigDict()
    # The data set.
    config.data.name = "digits"  # one of orc_jax.data.NAMES, "tfds:NAME" or "package.module:load"
    config.data.dir = "data"  # folder of the data set
    config.data.train_images = 0  # number to draw by the seed, each class its share; 0: all
    config.data.val_share = 0.0  # share of the training images to choose the best checkpoint by
    # Augmentation of the training images, and their labels.
    config.data.pad = 4  # pixels added on each side before the random crop; 0: no crop
    config.data.pad_mode = "zero"  # "zero" or "reflect": how the added pixels are filled
    config.data.flip = True  # mirror left to right with probability 1/2
    config.data.resized_crop = False  # scale a random part to size, in place of the padded crop
    config.data.jitter = 0.0  # brightness, contrast and saturation times 1 ± this; 0: unchanged
    config.data.erase = 0.0  # probability that a rectangle gets the mean colour; 0: never
    config.data.trivial_augment = False  # TrivialAugment: one random change of any strength
    config.data.mixup = 0.0  # α of mixup's shares, from Beta(α, α); 0: no mixup
    config.data.cutmix = 0.0  # α of CutMix; 0: no CutMix; with both, each batch has one of them
    config.data.label_smoothing = 0.0  # ε, the share of a label that all classes split; 0: none
    # Image files.
    config.data.size = 0  # height and width in pixels, after scaling and cropping; 0: as stored
    config.data.eval_resize = 0  # pixels of a test image's shorter side before its crop; 0: size
    config.data.test_share = 0.1  # share of the images to test on if there is no test split
    config.data.on_error = "stop"  # "stop" at a file that cannot be decoded, or "skip" it
    config.data.cache = ""  # folder for decoded images; "": the user's cache folder
    config.data.memory = 0.5  # share of the device's memory for images; larger sets are streamed
    config.data.workers = 0  # processes that decode streamed images; 0: threads of this process

    # The mesh of devices, see orc_jax/mesh.py.
    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that split the batch; -1: all that are left
    config.mesh.peer = -1  # devices that split the peers; -1: the best, or 1 if data is given

    # The optimizer of every peer; `peers[i].optimizer` overrides it for one of them.
    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # "sgd", "adam" or "adamw"
    config.optimizer.learning_rate = 0.1  # initial value, after the warm-up
    config.optimizer.momentum = 0.9  # of sgd; β1 of adam and adamw; 0: none
    config.optimizer.nesterov = True  # of sgd: use Nesterov's momentum
    config.optimizer.weight_decay = 5e-4  # added to the gradient; decoupled for adamw; 0: none
    config.optimizer.schedule = "step"  # "constant", "step" or "cosine", of the learning rate
    config.optimizer.decay_epochs = (100, 150)  # of "step": epochs at which the rate decays
    config.optimizer.decay = 0.1  # of "step": factor of the rate at each of them
    config.optimizer.reset_at_decay = False  # of "step": start each decay without momentum
    config.optimizer.warmup_epochs = 0.0  # epochs in which the rate rises linearly from 0; 0: none

    # Teachers that are trained before the group, see orc_jax/pretraining.py.
    config.pretrain = ConfigDict()
    config.pretrain.epochs = 0  # 0: those of the run
    config.pretrain.optimizer = _overrides(config.optimizer)

    config.method = methods.defaults(method)
    config.peers = ()
    return config


def _overrides(settings: ConfigDict) -> ConfigDict:
    """Return settings of the same names and types that are all None."""
    return ConfigDict(
        {name: config_dict.placeholder(type(value)) for name, value in settings.items()}
    )


def peer(model: str) -> ConfigDict:
    """Return the settings of one peer.

    Args:
      model: name of its network, see `orc_jax.models`.

    Returns:
      `model`, `init_from`, `new_head` and `optimizer`. Optimizer settings that are None follow
      those of the run.
    """
    config = ConfigDict()
    config.model = model
    # The weights to start from: a work directory, a saved network or a PyTorch file; None: random,
    # or those of a teacher that the run trains first.
    config.init_from = config_dict.placeholder(str)
    config.new_head = False  # take all but the classifier of init_from, for other classes
    config.optimizer = _overrides(default_config().optimizer)
    return config


def copied(config) -> ConfigDict:
    """Return a deep copy of a config.

    ConfigDict's own copy does not reach the peers, because they are in a tuple.
    """
    config = config.copy_and_resolve_references()
    config.peers = tuple(peer.copy_and_resolve_references() for peer in config.peers)
    return config


def resolved(config) -> ConfigDict:
    """Return a copy whose networks are spelled as in the registry, and paths without "~".

    Raises:
      UserError: a network is unknown.
    """
    config = copied(config)
    for key in ("dir", "cache"):
        config.data[key] = os.path.expanduser(config.data[key])
    for i, peer in enumerate(config.peers):
        peer.init_from = peer.init_from and os.path.expanduser(peer.init_from)
        try:
            peer.model = models.canonical(peer.model)
        except UserError as error:
            raise UserError(f"config.peers[{i}].model: {error}") from error
    return config


def to_json(config) -> str:
    """Return a config as the text that is written to a work directory."""
    values = {"schema": SCHEMA} | json.loads(config.to_json())
    return json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n"


def from_json(text: str) -> ConfigDict:
    """Read a config that `to_json` wrote, of this version or an earlier one.

    A setting that an earlier version did not have gets the value that means what was done then.

    Raises:
      UserError: a later version wrote it, or another program.
    """
    values = json.loads(text)
    if missing := [key for key in ("method", "peers") if key not in values]:
        raise UserError(f"it is not the config of a run: it has no {missing[0]!r}")
    schema = values.pop("schema", 1)
    config = ConfigDict(values)
    config.peers = tuple(map(ConfigDict, config.peers))
    if schema > SCHEMA:
        raise UserError(f"a later version of orc_jax wrote it (schema {schema}): install that one")
    if schema < 2 and "test_share" not in config.data:
        config.data.test_share, config.data.val_share = config.data.get("val_share", 0.1), 0.0
    with suppress(UserError):  # a method of the user's own that is not there; its use says so
        template = default_config(config.method.name)
        template.method.update({k: v for k, v in BEFORE.items() if k in template.method})
        _complete(config, template)
    return config


def _complete(config, template) -> None:
    """Add the settings that a config lacks."""
    for key, value in template.items():
        if key not in config:
            config[key] = value
        elif isinstance(value, ConfigDict):
            _complete(config[key], value)
    for member in config.get("peers", ()):
        _complete(member, peer(member.model))


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """List the keys at which two configs differ, each as "key: old value → new value"."""
    before, after = flat(json.loads(old.to_json())), flat(json.loads(new.to_json()))
    return [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, "absent") != after.get(key, "absent")
    ]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts, and lists of dicts, to one dict with dotted keys.

    Args:
      tree: a dict, a list or a leaf.
      prefix: key of the tree itself.
    """
    if isinstance(tree, dict):
        items = {f"{prefix}.{key}" if prefix else key: value for key, value in tree.items()}
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        items = {f"{prefix}[{i}]": value for i, value in enumerate(tree)}
    else:
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in items.items():
        leaves |= flat(value, key)
    return leaves
