"""A group of networks as stacked parameter pytrees: build, initialise, take apart.

Peers of one network and one optimizer are one `Stack`: every leaf of their variables has a leading
peer axis, and `jax.vmap` maps the network over it. A group is one stack or several; its outputs
are put together in peer order. The branches of a shared trunk are a stack too: the variables of
the trunk stand beside those of its members and have no peer axis.
"""

from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from orc_jax import models, optimizers
from orc_jax.data.preprocessing import Preprocessing
from orc_jax.mesh import batch_axes, is_split
from orc_jax.models.network import Network

# What a peer does in a step, see `orc_jax.methods.method.Positions`.
Kind = Literal["train", "later", "frozen", "idle"]
CHANGING: tuple[Kind, ...] = ("train", "later")


# Of a network, before it has any; one without batch norm has no statistics.
NO_VARIABLES: dict[str, dict] = {"params": {}, "batch_stats": {}}


class Layout(NamedTuple):
    """Which peers are one stack, before it is built.

    Attributes:
      name: the network's name.
      peers: positions of its members in the group.
      kind: what they do in a step, see `Kind`.
      optimizer: its settings.
      shared_trunk: whether they share all but their last stage and head.
    """

    name: str
    peers: tuple[int, ...]
    kind: Kind
    optimizer: ConfigDict
    shared_trunk: bool

    @property
    def changes(self) -> bool:
        """Whether its members ever learn."""
        return self.kind in CHANGING


class Stack(NamedTuple):
    """Peers of one network and one optimizer.

    Attributes:
      name, peers, kind, shared_trunk: see `Layout`.
      auxiliary: whether the networks have their auxiliary heads.
      module: the network.
      optimizer: gradient → update, without the learning rate.
      learning_rate: step → learning rate.
      resets: steps before which the state of the optimizer becomes zeros.
      precision: type of the activations; parameters and statistics are float32.
      split: whether the mesh axis `peer` splits the members (else it splits the batch).
      micro_batches: in how many parts a device takes its images, one after the other.
      synchronised: whether batch norm's statistics are of the whole batch.
      rescale: (factor, offset), both [P, channels], that turn the group's normalised images into
        those that every peer was trained on; None where these are the same.
    """

    name: str
    peers: tuple[int, ...]
    kind: Kind
    shared_trunk: bool
    auxiliary: bool
    module: Network
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    resets: tuple[int, ...]
    precision: str
    split: bool
    micro_batches: int
    synchronised: bool
    rescale: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """The mesh axes that split the batch."""
        return batch_axes(self.split)

    @property
    def spec(self) -> "StackState":
        """How the variables lie on the mesh, as a prefix of a `StackState`."""
        by_peer = PartitionSpec("peer") if self.split else PartitionSpec()
        return StackState(members=by_peer, trunk=PartitionSpec())


class Group(NamedTuple):
    """All the networks that train together.

    Attributes:
      stacks: every peer is in one of them.
      mesh: devices, with axes `data` and `peer`.
      names: the networks' names in peer order.
    """

    stacks: tuple[Stack, ...]
    mesh: Mesh
    names: list[str]

    @property
    def size(self) -> int:
        """The number of peers P."""
        return len(self.names)


@flax.struct.dataclass
class Variables:
    """Parameters, batch-norm statistics and the state of the optimizer."""

    params: Any
    stats: Any
    opt_state: Any


@flax.struct.dataclass
class StackState:
    """The variables of a stack.

    Attributes:
      members: the `Variables` of every member, each leaf with a leading peer axis.
      trunk: the `Variables` that all members share, without that axis; empty where they share
        nothing.
    """

    members: Any
    trunk: Any


def layout(config, method) -> list[Layout]:
    """Group the peers of a config: those of equal network, optimizer and kind are one stack.

    Args:
      config: checked.
      method: the `Method` that it names.
    """
    networks = [peer.model for peer in config.peers]
    settings = [optimizers.settings(config, peer) for peer in config.peers]
    kinds = method.positions.kinds(config.method, len(networks))
    for own, rate in zip(
        settings, method.positions.rates(config.method, len(networks)), strict=True
    ):
        own.learning_rate *= rate
    shared_trunk = method.needs.shared_trunk(config.method)
    if method.needs.auxiliary_heads and set(kinds) != {"train"}:
        raise ValueError("auxiliary heads need peers that all train on the batch")
    if shared_trunk and (set(kinds) != {"train"} or method.needs.own_augmentation):
        raise ValueError("a shared trunk needs peers that all train on the same images")
    found: dict = {}
    for i, key in enumerate(zip(networks, kinds, settings, strict=True)):
        found.setdefault((*key[:2], key[2].to_json(sort_keys=True)), []).append(i)
    return [
        Layout(network, tuple(members), kind, settings[members[0]], shared_trunk)
        for (network, kind, _), members in found.items()
    ]


def build(config, method, num_classes: int, steps_per_epoch: int, mesh: Mesh) -> Group:
    """Build the group that a config describes.

    Args:
      config, method: see `layout`.
      num_classes: outputs C of every network.
      steps_per_epoch: the unit of the learning-rate schedules.
      mesh: devices, with axes `data` and `peer`.
    """
    stacks = []
    for planned in layout(config, method):
        name, members, kind, settings, shared_trunk = planned
        split = is_split(members, mesh.shape["peer"])
        axes = batch_axes(split) if config.sync_batch_norm else None
        module = models.create(name, num_classes, axes)
        if shared_trunk and method.needs.rescaled_trunk:
            module = module.clone(trunk_gradient=1 / len(config.peers))
        stacks.append(
            Stack(
                name=name,
                peers=members,
                kind=kind,
                shared_trunk=shared_trunk,
                auxiliary=method.needs.auxiliary_heads,
                module=module.rematerialised() if config.remat else module,
                optimizer=optimizers.optimizer(settings) if planned.changes else optax.identity(),
                learning_rate=optimizers.schedule(settings, config.epochs, steps_per_epoch),
                resets=optimizers.resets(settings, steps_per_epoch),
                precision=config.precision,
                split=split,
                micro_batches=config.micro_batches,
                synchronised=config.sync_batch_norm,
            )
        )
    return Group(tuple(stacks), mesh, [peer.model for peer in config.peers])


def with_own_images(group: Group, images: Preprocessing, own: dict[int, Preprocessing]) -> Group:
    """Return the group with the normalisation that some peers were trained with before.

    Args:
      group: the networks.
      images: preprocessing of the group's images.
      own: peer → its own one.
    """
    scales = [own.get(peer, images) for peer in range(group.size)]
    # From (x − mean) / std of the group to that of the peer.
    factor = np.stack([images.std / scale.std for scale in scales])
    offset = np.stack([(images.mean - scale.mean) / scale.std for scale in scales])
    stacks = (
        stack._replace(rescale=(factor, offset)) if own.keys() & set(stack.peers) else stack
        for stack in group.stacks
    )
    return group._replace(stacks=tuple(stacks))


def init(group: Group, key, image_shape, pretrained: dict[int, Any]) -> tuple[StackState, ...]:
    """Initialise the variables of the group.

    Args:
      group: the networks.
      key: a fresh peer's weights depend on it and on the peer's position alone; a trunk is that of
        its first branch.
      image_shape: (height, width, channels).
      pretrained: peer → plain network's variables {"params", "batch_stats"} to start from
        instead; what is missing among them is fresh. Of branches, the first one gets them, with the
        trunk; the others start fresh, or they would stay equal for ever.
    """
    images, states = jnp.zeros((1, *image_shape)), []
    fresh: dict = {}
    new_heads = [peer for peer, given in pretrained.items() if not _has_classifier(given)]
    for stack in group.stacks:
        # One member at a time: random numbers of a whole stack compile three times as long.
        if (stack.name, stack.auxiliary) not in fresh:
            fresh[stack.name, stack.auxiliary] = jax.jit(
                lambda key, s=stack: fresh_outputs(s, key, images)[1]
            )
        members: list[dict] = []
        for peer in stack.peers:
            # Branches from one network: its own last stage and head are the first branch's alone.
            is_given = peer in pretrained and not (stack.shared_trunk and members)
            variables = pretrained[peer] if is_given else NO_VARIABLES
            if not is_given or stack.auxiliary or peer in new_heads:
                new = fresh[stack.name, stack.auxiliary](jax.random.fold_in(key, peer))
                variables = unflatten_dict(flatten_dict(new) | flatten_dict(variables))
            members.append(NO_VARIABLES | variables)
        states.append(jax.jit(lambda *v, s=stack: _stacked(s, v))(*members))
    return tuple(states)


def classifier(params: dict) -> str | None:
    """Return the name of a network's last dense layer in its head; None if it has no such layer."""
    return max((name for name in params.get("head", {}) if name.startswith("fc")), default=None)


def _has_classifier(variables) -> bool:
    return classifier(variables["params"]) is not None


def abstract(group: Group, image_shape: tuple[int, int, int]) -> tuple[StackState, ...]:
    """Return the shapes of what `init` gives; nothing is computed."""

    def state(stack, key):
        variables = fresh_outputs(stack, key, jnp.zeros((1, *image_shape)))[1]
        return _stacked(stack, [variables] * len(stack.peers))

    key = jax.random.key(0)
    return tuple(jax.eval_shape(lambda k, s=stack: state(s, k), key) for stack in group.stacks)


def fresh_outputs(stack: Stack, key, images):
    """Initialise a network; return its `Outputs` for images, and its variables."""
    outputs, variables = stack.module.init_with_output(
        key, images, train=False, auxiliary=stack.auxiliary, method="outputs"
    )
    return outputs, NO_VARIABLES | dict(variables)


def split_trunk(stack: Stack, tree: dict) -> tuple[dict, dict]:
    """Split a network's variables, by their top-level name, into a member's own and the trunk's."""
    shared = stack.module.trunk_keys() if stack.shared_trunk else set()
    own = {name: value for name, value in tree.items() if name not in shared}
    return own, {name: value for name, value in tree.items() if name in shared}


def _stacked(stack, variables) -> StackState:
    """Stack the members' {"params", "batch_stats"}; a trunk is the first member's."""
    own, trunks = [], []
    for member in variables:
        parts = {name: split_trunk(stack, tree) for name, tree in member.items()}
        own.append({name: part[0] for name, part in parts.items()})
        trunks.append({name: part[1] for name, part in parts.items()})
    own, trunk = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own), trunks[0]
    init = stack.optimizer.init
    return StackState(
        Variables(own["params"], own["batch_stats"], jax.vmap(init)(own["params"])),
        Variables(trunk["params"], trunk["batch_stats"], init(trunk["params"])),
    )


def plain_variables(stacks, states, peer: int) -> dict:
    """Take a peer out as a plain network: with its trunk, without auxiliary heads.

    Args:
      stacks: of the group, or their `Layout`s.
      states: a `StackState` for each.
      peer: position in the group.

    Returns:
      {"params", "batch_stats"}, as the network's own `init` gives them.
    """
    at, state = next((s, state) for s, state in zip(stacks, states, strict=True) if peer in s.peers)
    return plain_member(state, at.peers.index(peer))


def plain_member(state: StackState, slot) -> dict:
    """Take a member out of its stack as `plain_variables` does.

    Args:
      state: of the stack.
      slot: position in the stack; JAX may trace it.
    """
    own, trunk = select(state.members, slot), state.trunk
    variables = {"params": trunk.params | own.params, "batch_stats": trunk.stats | own.stats}
    return {
        name: {k: v for k, v in tree.items() if not k.startswith("auxiliary")}
        for name, tree in variables.items()
    }


def abstract_logits(stack: Stack, image_shape: tuple[int, int, int]):
    """Return the shapes of a plain network's logits for an image, and of its variables.

    The variables are {"params", "batch_stats"}. Nothing is computed.
    """
    images = jnp.zeros((1, *image_shape))
    logits, variables = jax.eval_shape(
        lambda key: stack.module.init_with_output(key, images, train=False), jax.random.key(0)
    )
    return logits, NO_VARIABLES | dict(variables)


def select(tree, slots):
    """Return the entries at these positions of every leaf's leading axis."""
    return jax.tree.map(lambda x: x[slots], tree)
