"""Checks of the config: before data is loaded, against the data, and of overrides."""

import json
import math
import numbers
import re
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from orc_jax import config as configs
from orc_jax import data as datasets
from orc_jax import mesh, methods, models, optimizers, peers
from orc_jax.errors import UserError, at_least, counted, one_of, unknown


def check(config, num_devices: int, own_data: bool = False) -> tuple[int, int]:
    """Check everything that can be known before data is loaded and devices are used.

    Args:
      config: the whole config.
      num_devices: number of devices, of all processes.
      own_data: whether the caller passes arrays, so that `data.name` is ignored.

    Returns:
      The shape of the mesh, (data, peer).

    Raises:
      UserError: a setting is wrong. The message names the first one, with the value given and
        the values allowed.
    """
    check_form(config)
    method = methods.get(config.method.get("name", ""))
    template = configs.default_config(config.method.name)
    template.peers = tuple(configs.peer("") for _ in config.peers)
    _check_keys(config, template, "config")
    config = configs.resolved(config)
    _check_numbers(config)
    for i, peer in enumerate(config.peers):
        _check_optimizer(optimizers.settings(config, peer), f"peers[{i}].optimizer")
    _check_optimizer(optimizers.settings(config, config.pretrain), "pretrain.optimizer")
    at_least(config.pretrain.epochs, 0, "pretrain.epochs")
    methods.check(config.method, [peer.model for peer in config.peers])
    own_data = own_data or datasets.is_own(config.data.name)
    _check_peers(config, method)

    one_of(config.precision, ("float32", "bfloat16"), "precision")
    if not own_data and not config.data.name.startswith(datasets.TFDS):
        one_of(config.data.name, [*datasets.NAMES, "tfds:NAME", "package.module:load"], "data.name")
    one_of(config.data.pad_mode, ("zero", "reflect"), "data.pad_mode")
    for key in (
        "epochs",
        "batch_size",
        "eval_batch_size",
        "eval_every",
        "checkpoint_every",
        "micro_batches",
    ):
        at_least(config[key], 1, key)
    at_least(config.checkpoint_minutes, 0, "checkpoint_minutes")
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
    for key, lowest in (("val_share", 0.0), ("test_share", 1e-9), ("memory", 0.0)):
        if not lowest <= config.data[key] < 1:
            least = "0" if lowest == 0 else "above 0"
            raise UserError(f"data.{key} is {config.data[key]}, allowed: {least}, and below 1")
    for key in ("jitter", "mixup", "cutmix"):
        at_least(config.data[key], 0, f"data.{key}")
    for key in ("erase", "label_smoothing"):
        if not 0 <= config.data[key] <= 1:
            raise UserError(f"data.{key} is {config.data[key]}, allowed: 0 to 1")
    if not 0 <= config.seed < 2**31:
        raise UserError(f"seed is {config.seed}, allowed: 0 to {2**31 - 1}")
    return _mesh_shape(config, method, num_devices)


def check_form(config) -> None:
    """Check that a config has the parts that tell what else it must have.

    Raises:
      UserError: it has not.
    """
    if not isinstance(config.get("method"), ConfigDict):
        raise UserError(
            f"config.method is {config.get('method')!r}, allowed: settings, as those of "
            "orc_jax.default_config"
        )
    members = config.get("peers")
    is_tuple = isinstance(members, (tuple, list))
    if not is_tuple or not members or not all(isinstance(peer, ConfigDict) for peer in members):
        raise UserError(
            f"config.peers is {members!r}, allowed: a tuple of networks, each made by orc_jax.peer"
        )


def _check_peers(config, method):
    """Check that the peers can do what the method needs of them."""
    if method.needs.shared_trunk(config.method):
        if config.mesh.peer not in (1, -1):
            raise UserError(
                f"mesh.peer is {config.mesh.peer}, allowed: 1, because the branches of "
                f"{config.method.name} share a trunk"
            )
        settings = [optimizers.settings(config, peer) for peer in config.peers]
        for i, peer in enumerate(config.peers):
            differences = {
                "model": peer.model != config.peers[0].model,
                "optimizer": settings[i] != settings[0],
                "init_from": peer.init_from != config.peers[0].init_from,
            }
            for key, differs in differences.items():
                if differs:
                    raise UserError(
                        f"peers[{i}].{key} differs from that of peers[0], but the branches of "
                        f"{config.method.name} share a trunk"
                    )
    kinds = method.positions.kinds(config.method, len(config.peers))
    for i, peer in enumerate(config.peers):
        if peer.new_head and not peer.init_from:
            raise UserError(f"peers[{i}].new_head is True, allowed: False without init_from")
        if peer.new_head and kinds[i] not in peers.CHANGING:
            raise UserError(
                f"peers[{i}].new_head is True, allowed: False, because this teacher does not learn"
            )
    if method.needs.auxiliary_heads:
        for i, peer in enumerate(config.peers):
            if not models.create(peer.model, 1).auxiliary:
                raise UserError(f"{peer.model} (peers[{i}]) has no auxiliary heads")


def _check_keys(config, template, where):
    """Check that the config has the keys of the template, at every level, and no others."""
    if unknown_keys := sorted(set(config) - set(template)):
        raise unknown(f"key of {where}", unknown_keys[0], template)
    if missing := sorted(set(template) - set(config)):
        raise UserError(f"{where} has no key {missing[0]!r}")
    for key, value in template.items():
        may_be_none = where == "config.method"  # a role that no peer plays
        if not _is_like(config[key], value) and not (may_be_none and config[key] is None):
            kind = "settings" if isinstance(value, ConfigDict) else type(value).__name__
            raise UserError(f"{where}.{key} is {config[key]!r}, allowed: {kind}")
        if isinstance(value, ConfigDict):
            _check_keys(config[key], value, f"{where}.{key}")
        elif key == "peers":
            for i, (peer, peer_template) in enumerate(zip(config.peers, value, strict=True)):
                _check_keys(peer, peer_template, f"{where}.peers[{i}]")


def _is_like(value, example) -> bool:
    """Return whether a value is of a type that can stand where the example stands."""
    if example is None or isinstance(value, bool) or isinstance(example, bool):
        return example is None or isinstance(value, bool) == isinstance(example, bool)
    kinds: dict[type, Any] = {int: numbers.Integral, float: numbers.Real, tuple: (tuple, list)}
    return isinstance(value, kinds.get(type(example), type(example)))


def _check_numbers(config):
    """Check that every number is finite, and every integer one that JAX can count with."""
    for key, value in configs.flat(json.loads(config.to_json())).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{key} is {value}, allowed: finite numbers")
            if isinstance(number, int) and not -(2**31) <= number < 2**31:
                raise UserError(f"{key} is {value}, allowed: at most {2**31 - 1}, or its negative")


def _check_optimizer(settings, where):
    one_of(settings.name, optimizers.OPTIMIZERS, f"{where}.name")
    one_of(settings.schedule, optimizers.SCHEDULES, f"{where}.schedule")
    for key in ("learning_rate", "momentum", "weight_decay", "decay", "warmup_epochs"):
        at_least(settings[key], 0, f"{where}.{key}")
    if settings.momentum >= 1:
        raise UserError(f"{where}.momentum is {settings.momentum}, allowed: from 0 to below 1")
    for epoch in settings.decay_epochs:
        if not isinstance(epoch, (int, float)) or epoch < 0:
            raise UserError(f"{where}.decay_epochs has {epoch!r}, allowed: numbers from 0")


def _mesh_shape(config, method, num_devices) -> tuple[int, int]:
    """Return the shape (data, peer) of the mesh, with the best sizes for those that are -1."""
    data, peer = config.mesh.data, config.mesh.peer
    for key in ("data", "peer"):
        if config.mesh[key] < 1 and config.mesh[key] != -1:
            raise UserError(f"mesh.{key} is {config.mesh[key]}, allowed: -1, or 1 or more")
    layouts = peers.layout(config, method)
    if peer == -1:
        peer = mesh.best_split(layouts, num_devices, config.batch_size) if data == -1 else 1
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
    """Check the settings that depend on the data.

    Args:
      config: a config that `check` accepted.
      dataset: the data set with both splits.
      num_images: number of training images, without those that the method keeps aside.

    Raises:
      UserError: the data does not allow a setting.
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
            f"{config.method.name} keeps images aside, which must fit "
            f"data.memory, {config.data.memory} of the device's"
        )
    if dataset.streamed and config.data.resized_crop and method.needs.own_augmentation:
        raise UserError(
            f"every peer of {config.method.name} sees other parts of an image (data.resized_crop): "
            f"they must fit data.memory, {config.data.memory} of the device's"
        )
    if 0 < config.data.train_images < dataset.num_classes:
        raise UserError(
            f"data.train_images is {config.data.train_images}, allowed: 0 for all, or as many as "
            f"there are classes, {dataset.num_classes}, or more"
        )
    if num_images < config.batch_size:
        raise UserError(
            f"batch_size is {config.batch_size}, allowed: at most the "
            f"{counted(num_images, 'training image')}"
        )


# Of an override, between "--config." and "=".
_KEY = re.compile(r"[A-Za-z_]\w*(\[\d+\])*(\.[A-Za-z_]\w*(\[\d+\])*)*")


def check_form_of_overrides(argv: list[str]) -> None:
    """Check that all overrides look like --config.KEY=VALUE.

    Args:
      argv: the command line.

    Raises:
      UserError: one does not. The message names the first one.
    """
    for argument in argv:
        key = re.match(r"--?config\.([^=]*)", argument)
        if key and not _KEY.fullmatch(key[1]):
            numbered = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", key[1])
            hint = f"did you mean --config.{numbered}? " if _KEY.fullmatch(numbered) else ""
            raise UserError(
                f"{argument!r} is not a setting: {hint}allowed: --config.KEY=VALUE, such as "
                "--config.optimizer.learning_rate=0.1 or --config.peers[0].model=resnet8"
            )


def check_overrides(argv: list[str]) -> None:
    """Check that the keys of all overrides, --config.KEY=VALUE, exist.

    Args:
      argv: the command line, with --config=FILE and the program's name first.

    Raises:
      UserError: a key does not exist. The message names the first one.
    """
    # Load the config without its overrides, into flags that are not those of the program.
    flag_values = flags.FlagValues()
    is_override = re.compile(r"--?config\.([^=]+)").match
    arguments = [argument for argument in argv if not is_override(argument)]
    flag = config_flags.DEFINE_config_file("config", flag_values=flag_values, sys_argv=arguments)
    flag_values(arguments, known_only=True)
    for override in filter(None, map(is_override, argv)):
        node, where = flag.value, "config"
        for key in re.findall(r"[^.\[\]]+", override[1]):
            if isinstance(node, ConfigDict) and key not in node:
                raise unknown(f"key of {where}", key, node)
            if isinstance(node, (tuple, list)):
                if not any(isinstance(entry, ConfigDict) for entry in node):
                    raise UserError(
                        f'{where} is given as a whole: "--{where}=({", ".join(map(str, node))},)"'
                    )
                if not key.isdigit() or int(key) >= len(node):
                    raise UserError(f"{where} has no [{key}], allowed: 0 to {len(node) - 1}")
                node, where = node[int(key)], f"{where}[{key}]"
            elif isinstance(node, ConfigDict):
                node, where = node[key], f"{where}.{key}"
            else:
                raise UserError(f"{where} is a value, it has no {key!r}")
