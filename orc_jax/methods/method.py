"""What a method is: a loss over the peers' outputs and, for few, one phase before it.

A method sees whole arrays of all P peers and the global batch of B images, and knows no
devices, files or flags. Its file fills a `Method`; `orc_jax.methods.METHODS` names it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict, config_dict

from orc_jax.errors import UserError


class Batch(NamedTuple):
    """What a method sees of one step. The gradient of its loss flows into `logits`,
    `features`, `auxiliary`, `trunk` and the parameters behind `own`.

    Attributes:
      logits: z, zero for peers without a pass on the batch.
      labels: y, of the greater part where an image is mixed of two.
      features: of each peer [B, D], what its classifier sees.
      auxiliary: logits of the auxiliary heads (see `Method.auxiliary_heads`).
      trunk: the shared trunk's output, averaged over height and width.
      own: what the method's own network (`Method.network`) gives for this batch.
      plan: `Turn.plan` of the phase before the loss.
      memory: what `Method.memory` or, since then, `Method.renew` gave.
      epoch: epochs done, a fraction within an epoch counted as zero.
      soft_labels: how much every image is of each class, if labels are smoothed or images
        mixed.
    """

    logits: Float[Array, "P B C"]
    labels: Int[Array, " B"]
    features: tuple[Float[Array, "B D"], ...] = ()
    auxiliary: Float[Array, "P B H C"] | None = None
    trunk: Float[Array, "B D"] | None = None
    own: Any = None
    plan: Any = None
    memory: Any = ()
    epoch: Int[Array, ""] | int = 0
    soft_labels: Float[Array, "B C"] | None = None

    @property
    def truth(self):
        """What cross-entropy asks for: the soft labels if there are any, else the labels."""
        return self.labels if self.soft_labels is None else self.soft_labels


class Lesson(NamedTuple):
    """Intensive teaching: an optimizer step of some peers on mixed images, before they teach.

    For whole networks (no shared trunk) that all see the same augmentation; a method that
    asks for it otherwise gets a `ValueError`.

    Attributes:
      pupils: who learns.
      among: who ever can (known before compilation).
      at_most: how many there can be at once.
      mix: (λ, partner [B]): image b becomes λ x_b + (1−λ) x_partner[b].
      loss: logits [n, B, C] on the mixed images → losses [n].
    """

    pupils: Bool[Array, " P"]
    among: np.ndarray
    at_most: int
    mix: tuple[Any, Int[Array, " B"]]
    loss: Callable


class Turn(NamedTuple):
    """What the phase before the loss settles for this step.

    Attributes:
      learns: [P] bool, who takes a step from the loss; the others stay bit for bit.
      promoted: [P] bool, who was given another role; None where roles are fixed.
      plan: for the loss, whatever it needs to know.
      metrics: name → number or [P], logged as means over an epoch.
      lesson: for teachers that learn before they teach.
    """

    learns: Bool[Array, " P"]
    promoted: Any = None
    plan: Any = None
    metrics: dict = {}  # noqa: RUF012 - never written to
    lesson: Lesson | None = None


@dataclass(frozen=True)
class Method:
    """A method of online distillation.

    `config` is `config.method`: the settings below with the user's values.

    Attributes:
      settings: name → default of every setting.
      loss: (config, batch) → the terms of the loss by name, each [P] (a term of every
        peer's own loss) or a number (a term of the whole group's). Their sum is minimised.
      phase: (config, batch, key) → `Turn`, before the loss; the batch is constant there.
        Without one, all peers that are not frozen learn.
      check: (config, networks) raises `UserError` where the settings make no sense for peers
        of these networks.
      describe: (config, P) → what each peer is, for the reader.
      kept: (config, P) → the peers that the training is for.
      kinds: (config, P) → for each peer "train" (one pass on the batch), "later" (none
        before the phase: it gets a lesson there) or "frozen" (eval mode, never changes).
      network: (config, P) → Flax module of the method's own parameters, called with a
        `Batch`; what it returns is `Batch.own`.
      shares_trunk: (config) → whether the peers are branches, the last stage and the head,
        of one trunk.
      rescale_trunk: the gradient that branches send into the trunk is divided by P.
      auxiliary_heads: every network has two heads more while it trains.
      own_augmentation: every peer sees its own crop and flip of the same images.
      may_be_none: settings that can be None.
      held_out: (config) → share of the training images kept for `renew`.
      memory: (config, P) → the first `Batch.memory`, arrays that the loss reads.
      renew: (config, logits [P, N, C], labels [N]) → the memory for the next epoch, from the
        held-out images in eval mode.
    """

    settings: dict
    loss: Callable
    phase: Callable | None = None
    check: Callable = lambda config, networks: None
    describe: Callable = lambda config, size: ["peer"] * size
    kept: Callable = lambda config, size: list(range(size))
    kinds: Callable = lambda config, size: ["train"] * size
    network: Callable | None = None
    shares_trunk: Callable = lambda config: False
    rescale_trunk: bool = False
    auxiliary_heads: bool = False
    own_augmentation: bool = False
    may_be_none: tuple[str, ...] = ()
    held_out: Callable = lambda config: 0.0
    memory: Callable = lambda config, size: ()
    renew: Callable | None = None

    def defaults(self) -> ConfigDict:
        """The settings as a fresh ConfigDict."""
        config = ConfigDict()
        for name, value in self.settings.items():
            if name in self.may_be_none:
                config[name] = config_dict.placeholder(object)
            config[name] = value
        return config


def one_of(config, name: str, allowed: tuple) -> None:
    """Raises `UserError` unless the setting is one of these."""
    if config[name] not in allowed:
        shown = ", ".join(map(str, allowed))
        raise UserError(f"method.{name} is {config[name]!r}, allowed: {shown}")


def at_least_two(method: str, networks: list[str]) -> None:
    """Raises `UserError` for a group of one."""
    if len(networks) < 2:
        raise UserError(f"{method} needs two networks or more, config.peers has {len(networks)}")


def equal_networks(method: str, networks: list[str]) -> None:
    """Raises `UserError` for a group of several architectures or of one network."""
    at_least_two(method, networks)
    if len(set(networks)) > 1:
        raise UserError(f"{method} needs equal networks, config.peers has {', '.join(networks)}")
