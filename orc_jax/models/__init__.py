"""The registry of networks, by name."""

import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from orc_jax.errors import UserError, unknown
from orc_jax.extension import import_name, is_import_name
from orc_jax.models import (
    densenet,
    mobilenet,
    mobilenet_v2,
    resnet,
    shufflenet,
    vgg,
    wide_resnet,
)
from orc_jax.models.initialisation import SWITOKD
from orc_jax.models.network import Network
from orc_jax.models.norm import BatchNorm


class Entry(NamedTuple):
    """A network of the registry.

    Attributes:
      build: function (num_classes, constructor of a batch norm layer) → network.
      torch_names: pairs (regular expression, replacement), applied in order, which turn the path
        of a variable, "part.block.layer.", into its name in PyTorch.
      torch_extra: regular expression that matches PyTorch's names of variables that are used
        in training only.
      size: height and width of the images that the network is usually trained on, in pixels.
      smallest: smallest height and width of the images that the network supports, in pixels.
    """

    build: Callable[[int, Callable], Network]
    torch_names: Sequence[tuple] = ()
    torch_extra: str = "$."  # matches nothing
    size: int = 32
    smallest: int = 8


# Output channels of each of the four stages.
NARROW, WIDE = (64, 128, 256, 512), (256, 512, 1024, 2048)
FOUR_STAGES = {
    10: partial(resnet.resnet, NARROW, (1, 1, 1, 1)),
    18: partial(resnet.resnet, NARROW, (2, 2, 2, 2)),
    34: partial(resnet.resnet, NARROW, (3, 4, 6, 3)),
    50: partial(resnet.resnet, WIDE, (3, 4, 6, 3), block=resnet.Bottleneck),
}
VGG = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def _three_stages(blocks, widths, stem_width, block=resnet.ResidualBlock):
    """Return the entry of a ResNet of three stages with `blocks` blocks each."""
    build = partial(resnet.resnet, widths, (blocks,) * 3, stem_width=stem_width, block=block)
    return Entry(build, resnet.TORCH_NAMES)


NETWORKS = {
    # Networks for small images, from the usual knowledge-distillation benchmark on CIFAR-100.
    **{
        f"resnet{depth}": _three_stages((depth - 2) // 6, (16, 32, 64), 16)
        for depth in (8, 14, 20, 26, 32, 44, 56, 110)
    },
    **{
        f"resnet{depth}x4": _three_stages((depth - 2) // 6, (64, 128, 256), 32) for depth in (8, 32)
    },
    **{
        f"ResNet{depth}": Entry(build, resnet.TORCH_NAMES_SMALL)
        for depth, build in FOUR_STAGES.items()
    },
    **{
        f"wrn_{depth}_{width}": Entry(
            partial(wide_resnet.wide_resnet, depth, width), wide_resnet.TORCH_NAMES
        )
        for depth, width in ((16, 1), (16, 2), (16, 8), (16, 10), (40, 1), (40, 2))
    },
    **{
        f"vgg{depth}": Entry(partial(vgg.vgg, convolutions), vgg.TORCH_NAMES)
        for depth, convolutions in VGG.items()
    },
    "MobileNetV2": Entry(partial(mobilenet_v2.small, 0.5), mobilenet_v2.TORCH_NAMES_SMALL),
    "ShuffleV1": Entry(shufflenet.shufflenet_v1, shufflenet.TORCH_NAMES),
    "ShuffleV2": Entry(shufflenet.shufflenet_v2, shufflenet.TORCH_NAMES),
    # OKDDip's networks, where they differ from those above.
    "okddip_resnet110": _three_stages(12, (64, 128, 256), 16, resnet.Bottleneck),
    "wide_resnet20_8": _three_stages(2, (64, 128, 256), 16, partial(resnet.Bottleneck, inner=2.0)),
    "okddip_vgg16": Entry(partial(vgg.vgg_okddip, VGG[16]), vgg.TORCH_NAMES_OKDDIP, smallest=32),
    **{
        f"densenet_{depth}_12": Entry(partial(densenet.densenet, depth, 12), densenet.TORCH_NAMES)
        for depth in (40, 100)
    },
    # DCM's networks.
    "wrn_28_10": Entry(
        partial(wide_resnet.wide_resnet, 28, 10, initialisation=wide_resnet.DCM),
        wide_resnet.TORCH_NAMES,
    ),
    "mobilenet": Entry(mobilenet.dcm, mobilenet.TORCH_NAMES_DCM, torch_extra=r"ep\d_"),
    # SwitOKD's networks for CIFAR, and for Tiny-ImageNet.
    "switokd_mobilenet": Entry(
        partial(mobilenet.mobilenet, mobilenet.IMAGENET, 1, initialisation=SWITOKD),
        mobilenet.TORCH_NAMES_SWITOKD,
    ),
    **{
        f"switokd_wrn_16_{width}": Entry(
            partial(wide_resnet.wide_resnet_switokd, 16, width), wide_resnet.TORCH_NAMES_SWITOKD
        )
        for width in (1, 2, 8, 10)
    },
    "switokd_wrn_16_2_tiny": Entry(
        partial(wide_resnet.wide_resnet_switokd, 16, 2, initialisation=SWITOKD),
        wide_resnet.TORCH_NAMES_SWITOKD,
        size=64,
    ),
    "switokd_resnet20": Entry(
        partial(
            resnet.resnet,
            (16, 32, 64),
            (3, 3, 3),
            stem_width=16,
            block=resnet.ShortcutWithoutParameters,
            initialisation=SWITOKD,
        ),
        resnet.TORCH_NAMES_SWITOKD,
        size=64,
    ),
    "switokd_resnet34": Entry(
        partial(FOUR_STAGES[34], initialisation=SWITOKD), resnet.TORCH_NAMES_SWITOKD_34, size=64
    ),
    # Networks for ImageNet, and the MobileNetV2 for Tiny-ImageNet.
    **{
        f"resnet{depth}": Entry(
            partial(build, stem=resnet.ImageNetStem), resnet.TORCH_NAMES, size=224
        )
        for depth, build in FOUR_STAGES.items()
    },
    "MobileNetV1": Entry(
        partial(mobilenet.mobilenet, mobilenet.IMAGENET, 2),
        mobilenet.TORCH_NAMES_IMAGENET,
        size=224,
    ),
    "mobilenet_v2": Entry(
        partial(mobilenet_v2.imagenet, 1.0), mobilenet_v2.TORCH_NAMES_IMAGENET, size=224
    ),
    "mobilenet_v2_x1.4": Entry(
        partial(mobilenet_v2.imagenet, 1.4, initialisation=mobilenet_v2.SWITOKD_TINY),
        mobilenet_v2.TORCH_NAMES_IMAGENET,
        size=64,
    ),
}


def register(
    name: str,
    build: Callable[[int, Callable], Network],
    torch_names: Sequence[tuple] = (),
    size: int = 32,
    smallest: int = 8,
) -> None:
    """Add a network to the registry of this process, under a name that configs can use.

    Other commands (evaluate, export, report) run in processes of their own and do not know the
    name. A config that they read must name the network as "package.module:build" instead, which
    they import.

    Args:
      name: the name for configs.
      build: function (num_classes, constructor of a batch norm layer) → network.
      torch_names: see `Entry`.
      size: see `Entry`.
      smallest: see `Entry`.

    Raises:
      UserError: another network is registered under this name.
    """
    if name in NETWORKS and NETWORKS[name].build is not build:
        raise UserError(f"there is a network {name!r} already: choose another name")
    NETWORKS[name] = Entry(build, torch_names, size=size, smallest=smallest)


def twin(name: str) -> str:
    """Return the form of a network for small images, or "": resnet18 → ResNet18.

    Args:
      name: name of a network.
    """
    plain = name.lower().replace("_", "")
    names = (other for other, entry in NETWORKS.items() if entry.size <= 32)
    return next((other for other in names if other.lower().replace("_", "") == plain), "")


def entry(name: str) -> Entry:
    """Return the registry's entry of a network, or make one for "package.module:build".

    Args:
      name: name of the network, as `canonical` returns it.

    Raises:
      UserError: the name cannot be imported, or it is neither a function nor an `Entry`.
    """
    if not is_import_name(name):
        return NETWORKS[name]
    imported = import_name("network", name)
    if isinstance(imported, Entry):
        return imported
    if not callable(imported):
        raise UserError(
            f"the network {name!r} is of type {type(imported).__name__}, expected a function "
            "(num_classes, norm) → network"
        )
    return Entry(imported)


def canonical(name: str) -> str:
    """Return the registry's spelling of a network's name: ResNet-56 → resnet56.

    Ignores case and the separators "-", "_", "." and space, except between digits. Accepts the
    longer forms WideResNet (WideResNet-40-2 is wrn_40_2), ShuffleNet (ShuffleNetV1 is ShuffleV1)
    and OKDDip's densenetd40k12 (densenet_40_12). Returns "package.module:build" unchanged.

    Args:
      name: name of a network, in any of these spellings.

    Raises:
      UserError: no network has this name, or several have it (ResNet-18 may be resnet18 or
        ResNet18).
    """
    if name in NETWORKS or is_import_name(name):
        return name
    for spelling in (_plain(name), _short(_plain(name))):
        matches = [known for known in NETWORKS if _plain(known) == spelling]
        if len(matches) > 1:
            raise UserError(
                f"the network {name!r} may be {' or '.join(matches)}: write one of these exactly"
            )
        if matches:
            return matches[0]
    raise unknown("network", name, [*NETWORKS, "package.module:build"])


def _plain(name):
    """Lower the case and remove separators, but keep one between digits, as "+"."""
    name = re.sub(r"(?<=\d)[-_. ]+(?=\d)", "+", name.lower())
    return re.sub(r"[-_. ]", "", name)


def _short(name):
    """Abbreviate the longer forms of a plain name as the registry does."""
    for long, short in (
        (r"^wideresnet", "wrn"),
        (r"^shufflenet", "shuffle"),
        (r"^densenetd(\d+)k", r"densenet\1+"),
    ):
        name = re.sub(long, short, name)
    return name


def create(name: str, num_classes: int, batch_axes: Sequence[str] | None = None) -> Network:
    """Build the network of this name.

    Args:
      name: key of `NETWORKS`, in any spelling that `canonical` accepts, or
        "package.module:build".
      num_classes: number of classes C.
      batch_axes: mesh axes over which batch norm takes its statistics; None to take them over
        this device's images only.

    Raises:
      UserError: no network has this name, or the function does not return a `Network`.
    """
    norm = partial(BatchNorm, axis_name=batch_axes)
    build = entry(canonical(name)).build
    try:
        inspect.signature(build).bind(num_classes, norm)
    except TypeError as error:
        raise UserError(
            f"the network {name!r} cannot be built by (num_classes, norm): {error}"
        ) from error
    network = build(num_classes, norm)
    if not isinstance(network, Network):
        raise UserError(
            f"the network {name!r} is of type {type(network).__name__}, expected "
            "orc_jax.models.network.Network"
        )
    return network
