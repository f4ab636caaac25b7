"""The whole configuration: one ConfigDict, checked once before anything compiles."""

import json
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict, config_dict

from orc_jax import data, mesh, methods, models, optimizers, peers
from orc_jax.errors import UserError, unknown


def default(method: str = "orc") -> ConfigDict:
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
    # Filled in from the data.
    config.data.class_names = ()
    config.data.streamed = config_dict.placeholder(bool)

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
    config.optimizer = ConfigDict(
        {name: config_dict.placeholder(type(value)) for name, value in default().optimizer.items()}
    )
    return config


def check(config, num_devices: int, own_data: bool = False) -> tuple[int, int]:
    """Checks everything that can be known before data and devices are touched.

    Args:
      config: the whole config; its networks' names are put into the registry's spelling.
      num_devices: how many there are.
      own_data: the caller gives arrays, so that `data.name` names nothing.

    Returns:
      The mesh shape, (data, peer).

    Raises:
      UserError: the first thing that is wrong, with the value given and those allowed.
    """
    if not config.peers or not all(isinstance(one, ConfigDict) for one in config.peers):
        raise UserError(
            f"config.peers is {config.peers!r}, allowed: a tuple of networks, each made by "
            "orc_jax.config.peer"
        )
    method = methods.get(config.method.get("name", ""))
    template = default(config.method.name)
    template.peers = tuple(peer("") for _ in config.peers)
    _check_keys(config, template, "config")
    for i, one in enumerate(config.peers):
        try:
            one.model = models.canonical(one.model)
        except UserError as error:
            raise UserError(f"config.peers[{i}].model: {error}") from error
        _check_optimizer(optimizers.settings(config, one), f"peers[{i}].optimizer")
    methods.check(config.method, [one.model for one in config.peers])
    _check_peers(config, method, own_data)

    _one_of(config.precision, ("float32", "bfloat16"), "precision")
    if not own_data and not config.data.name.startswith(data.TFDS):
        _one_of(config.data.name, data.NAMES, "data.name")
    _one_of(config.data.pad_mode, ("zero", "reflect"), "data.pad_mode")
    for key, least in (
        ("epochs", 1),
        ("batch_size", 1),
        ("eval_batch_size", 1),
        ("eval_every", 1),
        ("checkpoint_every", 1),
        ("micro_batches", 1),
    ):
        _at_least(config[key], least, key)
    if config.data.train_images and config.data.train_images < config.batch_size:
        raise UserError(
            f"data.train_images is {config.data.train_images}, allowed: 0 for all, or batch_size, "
            f"{config.batch_size}, or more"
        )
    _one_of(config.data.on_error, ("stop", "skip"), "data.on_error")
    if own_data or config.data.name in data.OF_ONE_SIZE:
        for key in ("size", "eval_resize"):
            if config.data[key]:
                raise UserError(
                    f"data.{key} is {config.data[key]}, allowed: 0, because {config.data.name} "
                    "has images of one size"
                )
    for key in ("pad", "size", "workers", "eval_resize"):
        _at_least(config.data[key], 0, f"data.{key}")
    for key, least in (("val_share", 1e-9), ("memory", 0)):
        if not least <= config.data[key] < 1:
            raise UserError(f"data.{key} is {config.data[key]}, allowed: between 0 and 1")
    for key in ("jitter", "mixup", "cutmix"):
        _at_least(config.data[key], 0, f"data.{key}")
    for key in ("erase", "label_smoothing"):
        if not 0 <= config.data[key] <= 1:
            raise UserError(f"data.{key} is {config.data[key]}, allowed: 0 to 1")
    if not 0 <= config.seed < 2**31:
        raise UserError(f"seed is {config.seed}, allowed: 0 to {2**31 - 1}")
    return _mesh_shape(config, method, num_devices)


def _check_peers(config, method, own_data):
    """The peers can do what the method asks of them."""
    for i, kind in enumerate(method.positions.kinds(config.method, len(config.peers))):
        if kind == "frozen" and not config.peers[i].init_from:
            raise UserError(
                f"{config.method.name} needs a trained {config.peers[i].model} in "
                f"peers[{i}].init_from: a run's directory, a saved network or a PyTorch file"
                + ("" if own_data else f". Two commands: {_two_commands(config, i)}")
            )
    if method.needs.shared_trunk(config.method):
        if config.mesh.peer not in (1, -1):
            raise UserError(
                f"mesh.peer is {config.mesh.peer}, allowed: 1, because the branches of "
                f"{config.method.name} share a trunk"
            )
        settings = [optimizers.settings(config, one) for one in config.peers]
        for i, one in enumerate(config.peers):
            for key, differs in (
                ("optimizer", settings[i] != settings[0]),
                ("init_from", one.init_from != config.peers[0].init_from),
            ):
                if differs:
                    raise UserError(
                        f"peers[{i}].{key} differs from that of peers[0], but the branches of "
                        f"{config.method.name} share a trunk"
                    )
    if method.needs.auxiliary_heads:
        for i, one in enumerate(config.peers):
            if not models.create(one.model, 1).auxiliary:
                raise UserError(f"{one.model} (peers[{i}]) has no auxiliary heads")


def _two_commands(config, teacher):
    """How to train a frozen teacher, and then with it."""
    main, file = "python -m orc_jax.main", f"configs/{config.data.name}.py"
    if config.data.name == "folder" or config.data.name.startswith(data.TFDS):
        main += f" --config.data.name={config.data.name} --config.data.dir={config.data.dir}"
        main += f" --config.data.size={config.data.size}"
        file = "configs/folder.py"
    networks = [one.model for one in config.peers]
    place = "" if teacher == 0 else f" --config.method.teacher={teacher}"
    return (
        f"{main} --config={file}:ind:{networks[teacher]} --workdir=runs/teacher && "
        f"{main} --config={file}:{config.method.name}:{','.join(networks)}{place} "
        f"'--config.peers[{teacher}].init_from=runs/teacher'"
    )


def _check_keys(config, template, where):
    """The config has just the keys that the template has, at every level."""
    if unknown_keys := sorted(set(config) - set(template)):
        raise unknown(f"key of {where}", unknown_keys[0], template)
    if missing := sorted(set(template) - set(config)):
        raise UserError(f"{where} has no key {missing[0]!r}")
    for key, value in template.items():
        if isinstance(value, ConfigDict):
            _check_keys(config[key], value, f"{where}.{key}")
        elif key == "peers":
            for i, (one, same) in enumerate(zip(config.peers, value, strict=True)):
                _check_keys(one, same, f"{where}.peers[{i}]")


def _check_optimizer(settings, where):
    _one_of(settings.name, optimizers.OPTIMIZERS, f"{where}.name")
    _one_of(settings.schedule, optimizers.SCHEDULES, f"{where}.schedule")
    for key in ("learning_rate", "momentum", "weight_decay", "decay", "warmup_epochs"):
        _at_least(settings[key], 0, f"{where}.{key}")
    for epoch in settings.decay_epochs:
        if not isinstance(epoch, (int, float)) or epoch < 0:
            raise UserError(f"{where}.decay_epochs has {epoch!r}, allowed: numbers from 0")


def _one_of(value, allowed: Sequence[str], where):
    if value not in allowed:
        raise unknown(f"value of {where}", value, allowed)


def _at_least(value, least, where):
    if not value >= least:
        raise UserError(f"{where} is {value}, allowed: {least} or more")


def _mesh_shape(config, method, num_devices) -> tuple[int, int]:
    data, peer = config.mesh.data, config.mesh.peer
    for key in ("data", "peer"):
        if config.mesh[key] < 1 and config.mesh[key] != -1:
            raise UserError(f"mesh.{key} is {config.mesh[key]}, allowed: -1, or 1 or more")
    layouts = peers.layout(config, method)
    if peer == -1:
        chosen = data == -1
        peer = mesh.best_split(layouts, num_devices, config.batch_size) if chosen else 1
    if data == -1:
        data = num_devices // peer
    if data < 1 or data * peer > num_devices:
        raise UserError(
            f"mesh.data={config.mesh.data}, mesh.peer={peer} needs {max(1, data) * peer} "
            f"devices, here are {num_devices} ({jax.default_backend()})"
        )
    if jax.process_count() > 1 and data * peer < num_devices:
        raise UserError(
            f"mesh.data={data}, mesh.peer={peer} leaves {num_devices - data * peer} of the "
            f"{num_devices} devices of all processes idle: allowed are meshes of all of them"
        )
    divisor = mesh.divisor(layouts, data, peer)
    if config.batch_size % divisor:
        raise UserError(
            f"batch_size is {config.batch_size}, allowed: multiples of {divisor}, because of the "
            f"{data} devices of the mesh for data × {peer} for peers"
        )
    if config.batch_size % (divisor * config.micro_batches):
        raise UserError(
            f"micro_batches is {config.micro_batches}, allowed: what divides the "
            f"{config.batch_size // divisor} images of a device"
        )
    return data, peer


def to_json(config) -> str:
    """The config as it is written to a work directory."""
    return config.to_json(indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """A config that `to_json` wrote."""
    config = ConfigDict(json.loads(text))
    config.peers = tuple(ConfigDict(one) for one in config.peers)
    return config


def differences(one: ConfigDict, other: ConfigDict) -> list[str]:
    """The keys at which two configs differ, each as "key: value → other value"."""
    one, other = flat(json.loads(to_json(one))), flat(json.loads(to_json(other)))
    return [
        f"{key}: {one.get(key)!r} → {other.get(key)!r}"
        for key in sorted(one.keys() | other.keys())
        if one.get(key, "absent") != other.get(key, "absent")
    ]


def flat(tree, prefix=""):
    """Nested dicts, and lists of dicts, as one dict with dotted keys."""
    if isinstance(tree, dict):
        items = {f"{prefix}.{key}" if prefix else key: value for key, value in tree.items()}
    elif isinstance(tree, list) and any(isinstance(one, dict) for one in tree):
        items = {f"{prefix}[{i}]": value for i, value in enumerate(tree)}
    else:
        return {prefix: tree}
    return {k: v for key, value in items.items() for k, v in flat(value, key).items()}
