"""Every answer to settings that make no sense: before the data is there, with it, and overrides."""

import re

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from orc_jax import config as configs
from orc_jax import data as datasets
from orc_jax import mesh, methods, models, optimizers, peers
from orc_jax.errors import UserError, at_least, one_of, unknown


def check(config, num_devices: int, own_data: bool = False) -> tuple[int, int]:
    """Checks everything that can be known before data and devices are touched.

    Args:
      config: the whole config.
      num_devices: how many there are.
      own_data: the caller gives arrays, so that `data.name` names nothing.

    Returns:
      The mesh shape, (data, peer).

    Raises:
      UserError: the first thing that is wrong, with the value given and those allowed.
    """
    if not config.peers or not all(isinstance(peer, ConfigDict) for peer in config.peers):
        raise UserError(
            f"config.peers is {config.peers!r}, allowed: a tuple of networks, each made by "
            "orc_jax.peer"
        )
    method = methods.get(config.method.get("name", ""))
    template = configs.default_config(config.method.name)
    template.peers = tuple(configs.peer("") for _ in config.peers)
    _check_keys(config, template, "config")
    config = configs.resolved(config)
    for i, peer in enumerate(config.peers):
        _check_optimizer(optimizers.settings(config, peer), f"peers[{i}].optimizer")
    methods.check(config.method, [peer.model for peer in config.peers])
    _check_peers(config, method, own_data)

    one_of(config.precision, ("float32", "bfloat16"), "precision")
    own_data = own_data or datasets.is_own(config.data.name)
    if not own_data and not config.data.name.startswith(datasets.TFDS):
        one_of(config.data.name, [*datasets.NAMES, "tfds:NAME", "package.module:load"], "data.name")
    one_of(config.data.pad_mode, ("zero", "reflect"), "data.pad_mode")
    for key, least in (
        ("epochs", 1),
        ("batch_size", 1),
        ("eval_batch_size", 1),
        ("eval_every", 1),
        ("checkpoint_every", 1),
        ("micro_batches", 1),
    ):
        at_least(config[key], least, key)
    if config.data.train_images and config.data.train_images < config.batch_size:
        raise UserError(
            f"data.train_images is {config.data.train_images}, allowed: 0 for all, or batch_size, "
            f"{config.batch_size}, or more"
        )
    one_of(config.data.on_error, ("stop", "skip"), "data.on_error")
    if own_data or config.data.name in datasets.OF_ONE_SIZE:
        for key in ("size", "eval_resize"):
            if config.data[key]:
                raise UserError(
                    f"data.{key} is {config.data[key]}, allowed: 0, because {config.data.name} "
                    "has images of one size"
                )
    for key in ("pad", "size", "workers", "eval_resize"):
        at_least(config.data[key], 0, f"data.{key}")
    for key, least in (("val_share", 1e-9), ("memory", 0)):
        if not least <= config.data[key] < 1:
            raise UserError(f"data.{key} is {config.data[key]}, allowed: between 0 and 1")
    for key in ("jitter", "mixup", "cutmix"):
        at_least(config.data[key], 0, f"data.{key}")
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
        settings = [optimizers.settings(config, peer) for peer in config.peers]
        for i, peer in enumerate(config.peers):
            for key, differs in (
                ("optimizer", settings[i] != settings[0]),
                ("init_from", peer.init_from != config.peers[0].init_from),
            ):
                if differs:
                    raise UserError(
                        f"peers[{i}].{key} differs from that of peers[0], but the branches of "
                        f"{config.method.name} share a trunk"
                    )
    if method.needs.auxiliary_heads:
        for i, peer in enumerate(config.peers):
            if not models.create(peer.model, 1).auxiliary:
                raise UserError(f"{peer.model} (peers[{i}]) has no auxiliary heads")


def _two_commands(config, teacher):
    """How to train a frozen teacher, and then with it."""
    main, file = "python -m orc_jax.main", f"configs/{config.data.name}.py"
    if config.data.name == "folder" or config.data.name.startswith(datasets.TFDS):
        main += f" --config.data.name={config.data.name} --config.data.dir={config.data.dir}"
        main += f" --config.data.size={config.data.size}"
        file = "configs/folder.py"
    networks = [peer.model for peer in config.peers]
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
            for i, (peer, its_template) in enumerate(zip(config.peers, value, strict=True)):
                _check_keys(peer, its_template, f"{where}.peers[{i}]")


def _check_optimizer(settings, where):
    one_of(settings.name, optimizers.OPTIMIZERS, f"{where}.name")
    one_of(settings.schedule, optimizers.SCHEDULES, f"{where}.schedule")
    for key in ("learning_rate", "momentum", "weight_decay", "decay", "warmup_epochs"):
        at_least(settings[key], 0, f"{where}.{key}")
    for epoch in settings.decay_epochs:
        if not isinstance(epoch, (int, float)) or epoch < 0:
            raise UserError(f"{where}.decay_epochs has {epoch!r}, allowed: numbers from 0")


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


def check_data(config, dataset: datasets.Dataset, num_images: int) -> None:
    """Checks what depends on the data.

    Args:
      config: a checked config.
      dataset: both splits.
      num_images: how many images are trained on.

    Raises:
      UserError: the first setting that the data does not allow.
    """
    height, width, _ = dataset.image_shape
    if config.data.pad >= min(height, width):
        raise UserError(
            f"data.pad is {config.data.pad}, allowed: less than the images' size, {height}×{width}"
        )
    for i, peer in enumerate(config.peers):
        smallest = models.entry(peer.model).smallest
        if min(height, width) < smallest:
            raise UserError(
                f"peers[{i}].model is {peer.model}, which needs images of {smallest}×{smallest} "
                f"pixels or more; these are {height}×{width}"
            )
    method = methods.get(config.method.name)
    if dataset.streamed and method.memory.held_out(config.method):
        raise UserError(
            f"{config.method.name} {config.method.target} keeps images aside, which must fit "
            f"data.memory, {config.data.memory} of the device's"
        )
    if dataset.streamed and config.data.resized_crop and method.needs.own_augmentation:
        raise UserError(
            f"every peer of {config.method.name} sees other parts of an image (data.resized_crop): "
            f"they must fit data.memory, {config.data.memory} of the device's"
        )
    if num_images < config.batch_size:
        raise UserError(
            f"batch_size is {config.batch_size}, allowed: at most the {num_images} training images"
        )


def check_overrides(argv: list[str]) -> None:
    """Raises `UserError` for the first --config.KEY of the arguments that does not exist."""
    alone = flags.FlagValues()
    is_override = re.compile(r"--?config\.([^=]+)").match
    others = [argument for argument in argv if not is_override(argument)]
    flag = config_flags.DEFINE_config_file("config", flag_values=alone, sys_argv=others)
    alone(others, known_only=True)
    for given in filter(None, map(is_override, argv)):
        node, where = flag.value, "config"
        for key in re.findall(r"[^.\[\]]+", given[1]):
            if isinstance(node, ConfigDict) and key not in node:
                raise unknown(f"key of {where}", key, node)
            if isinstance(node, (tuple, list)):
                if not key.isdigit() or int(key) >= len(node):
                    raise UserError(f"{where} has no [{key}], allowed: 0 to {len(node) - 1}")
                node, where = node[int(key)], f"{where}[{key}]"
            elif isinstance(node, ConfigDict):
                node, where = node[key], f"{where}.{key}"
            else:
                raise UserError(f"{where} is a value, it has no {key!r}")
