"""What a method is: a loss over the peers' outputs and, for some, a phase before it.

A method sees whole arrays of all P peers and of the global batch of B images; it knows no
devices, files or flags. The file of a method fills in a `Method`. `orc_jax.methods.METHODS` names
those of this package; `orc_jax.register_method` adds yours, or a config names it as
"package.module:NAME".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict, config_dict

from orc_jax.errors import UserError
from orc_jax.models.network import Outputs
from orc_jax.peers import Kind


class TeacherUpdate(NamedTuple):
    """An optimizer step that some peers take before they teach.

    ORC's intensive and private teaching are such steps. They are for whole networks (no shared
    trunk) that all see the same augmentation; elsewhere they raise `ValueError`.

    Afterwards `Batch.outputs` has the logits of their new weights on the batch, in train mode.
    Their other outputs stay what they were before, zeros for a peer that had no pass.

    Attributes:
      name: of the loss in the metrics.
      learners: who takes the step.
      among: who ever can; known before compilation.
      at_most: how many can at once; known before compilation.
      loss: (logits [n, B, C] of n learners, logits [P, B, C] of the group on the batch, `mix`) →
        losses [n]. Gradient flows through the first alone.
      mix: (λ, partner [B]) to learn from mixed images, where image b becomes
        λ x_b + (1−λ) x_partner[b]; None to learn from the batch itself.
    """

    name: str
    learners: Bool[Array, " P"]
    among: np.ndarray
    at_most: int
    loss: Callable
    mix: tuple[Any, Int[Array, " B"]] | None = None


class Roles(NamedTuple):
    """Who does what in this step: what the phase before the loss settles.

    All devices get the arrays that the first one computed: they decide alike by construction, even
    where rounding differs. Let a loss read them from here, not from the phase.

    Attributes:
      learns: who takes a step from the loss; weights and optimizer of the others stay the same, bit
        for bit. Their running statistics follow the batch, as in PyTorch's train mode.
      promoted: [P] bool, who was promoted to teacher in this step; None where roles are fixed.
      learns_from: [P, P] bool or numbers, how much peer i (row) learns from peer j (column); None
        where the loss does not ask.
      metrics: name → number or [P], logged as means over an epoch.
      updates: for teachers that learn before they teach, one after the other: a later one sees what
        an earlier one has changed.
    """

    learns: Bool[Array, " P"]
    promoted: Any = None
    learns_from: Any = None
    metrics: dict[str, Any] = {}  # noqa: RUF012 - never written to
    updates: tuple[TeacherUpdate, ...] = ()


class Batch(NamedTuple):
    """What a method sees of one step.

    The gradient of the loss flows into every array of `outputs` and into the parameters behind
    `own_output`.

    Attributes:
      outputs: of all peers. Each field has a leading peer axis, as `logits` [P, B, C]; where the
        shapes of the peers differ (`features` of several architectures), it is a tuple with one
        array a peer. A peer that has its pass "later" (see `Kind`), such as ORC's pivot before its
        intensive teaching, has zeros.
      labels: y; where two images are mixed, the label of the greater part.
      soft_labels: how much each image is of each class, if labels are smoothed or images mixed.
      epoch: epochs done, a whole number.
      roles: the `Roles` that the phase settled; None in the phase itself.
      own_output: what the method's own network (`Method.own_network`) gives for this batch.
      memory: what `Memory.first` or, since then, `Memory.renew` gave.
    """

    outputs: Outputs
    labels: Int[Array, " B"]
    soft_labels: Float[Array, "B C"] | None = None
    epoch: Int[Array, ""] | int = 0
    roles: Any = None
    own_output: Any = None
    memory: Any = ()

    @property
    def logits(self) -> Float[Array, "P B C"]:
        """The logits z of all peers."""
        return self.outputs.logits

    @property
    def truth(self) -> Int[Array, " B"] | Float[Array, "B C"]:
        """The target of cross-entropy: the soft labels if there are any, else the labels."""
        return self.labels if self.soft_labels is None else self.soft_labels


@dataclass(frozen=True)
class Positions:
    """Which role each position of the group plays; functions of (config, P).

    Attributes:
      titles: what each peer is called in tables.
      kept: the peers that the training is for.
      kinds: the `Kind` of each peer. "train": one pass on the batch, in train mode. "later": no
        pass before the phase, in which the peer is updated and has its only pass. "frozen": one
        pass in eval mode; the peer never changes. A frozen peer is trained beforehand. "idle": no
        pass at all, and it never changes either.
      pretrained: the peers that are trained before the group, each with the list of the peers that
        teach it then, by this method; an empty list for plain training.
      rates: the factor on each peer's learning rate.
    """

    titles: Callable[[Any, int], list[str]] = lambda config, size: ["peer"] * size
    kept: Callable[[Any, int], list[int]] = lambda config, size: list(range(size))
    kinds: Callable[[Any, int], Sequence[Kind]] = lambda config, size: ["train"] * size
    pretrained: Callable[[Any, int], dict[int, list[int]]] = lambda config, size: {}
    rates: Callable[[Any, int], list[float]] = lambda config, size: [1.0] * size


@dataclass(frozen=True)
class Needs:
    """What a method needs from the networks and their images.

    Attributes:
      shared_trunk: (config) → whether the peers are branches (last stage and head) of one trunk.
      rescaled_trunk: whether the gradient that branches send into the trunk is divided by P.
      auxiliary_heads: whether every network has two more heads while it trains.
      own_augmentation: whether every peer sees its own crop and flip of the same images.
    """

    shared_trunk: Callable[[Any], bool] = lambda config: False
    rescaled_trunk: bool = False
    auxiliary_heads: bool = False
    own_augmentation: bool = False


@dataclass(frozen=True)
class Memory:
    """What a method remembers from epoch to epoch, besides the parameters of its own network.

    Attributes:
      first: (config, P) → the first `Batch.memory`, arrays that the loss reads.
      held_out: (config) → share of the training images that is kept aside for `renew`.
      renew: (config, logits [P, N, C], labels [N]) → the memory for the next epoch, from the
        held-out images in eval mode.
    """

    first: Callable[[Any, int], Any] = lambda config, size: ()
    held_out: Callable[[Any], float] = lambda config: 0.0
    renew: Callable | None = None


class Ensemble(NamedTuple):
    """An ensemble that is evaluated beside the mean of all peers' softmax outputs.

    Attributes:
      logits: (config, batch) → logits or log-probabilities [B, C], from outputs in eval mode.
      members: (config, P) → the peers whose diversity is logged with it.
    """

    logits: Callable[[Any, Batch], Any]
    members: Callable[[Any, int], list[int]]


class OrNone(NamedTuple):
    """The default of a setting that may also be None."""

    value: Any


@dataclass(frozen=True)
class Method:
    """A method of online distillation.

    `config` is `config.method`: the settings below with the user's values.

    Attributes:
      settings: name → default of every setting.
      loss: (config, batch) → the terms of the loss by name, each [P] (a term of every peer's own
        loss) or a number (a term of the whole group's). Their sum is minimised.
      phase: (config, batch, key) → `Roles`, before the loss; no gradient flows through it. Without
        a phase, all peers that are not frozen learn.
      check: (config, networks) raises `UserError` where the settings make no sense for peers of
        these networks.
      positions: who plays which role.
      needs: what the method needs from the networks.
      own_network: (config, P) → Flax module of the method's own parameters, called with a `Batch`
        and `train`; what it returns is `Batch.own_output`.
      memory: what the method remembers.
      ensembles: name → ensemble of the method's paper, evaluated and logged under this name.
    """

    settings: dict[str, Any]
    loss: Callable[[Any, Batch], dict[str, Any]]
    phase: Callable[[Any, Batch, Any], Roles] | None = None
    check: Callable[[Any, list[str]], None] = lambda config, networks: None
    positions: Positions = field(default_factory=Positions)
    needs: Needs = field(default_factory=Needs)
    own_network: Callable | None = None
    memory: Memory = field(default_factory=Memory)
    ensembles: dict[str, Ensemble] = field(default_factory=dict)

    def defaults(self) -> ConfigDict:
        """Return the settings as a fresh ConfigDict."""
        config = ConfigDict()
        for name, value in self.settings.items():
            if isinstance(value, OrNone):
                config[name] = config_dict.placeholder(object)
                value = value.value
            config[name] = value
        return config


def one_of(config, name: str, allowed: tuple) -> None:
    """Raise `UserError` unless the setting is one of these."""
    if config[name] not in allowed:
        shown = ", ".join(map(str, allowed))
        raise UserError(f"method.{name} is {config[name]!r}, allowed: {shown}")


def at_least_two(method: str, networks: list[str]) -> None:
    """Raise `UserError` for a group of one."""
    if len(networks) < 2:
        raise UserError(f"{method} needs two networks or more, config.peers has {len(networks)}")


def equal_networks(method: str, networks: list[str]) -> None:
    """Raise `UserError` for a group of several architectures or of one network."""
    at_least_two(method, networks)
    if len(set(networks)) > 1:
        raise UserError(f"{method} needs equal networks, config.peers has {', '.join(networks)}")
