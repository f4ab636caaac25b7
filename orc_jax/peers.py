"""A group of networks as stacked parameter pytrees: build, initialise, place on devices.

Peers of one network and one optimizer are one `Stack`: every leaf of its variables has a
leading peer axis and `jax.vmap` maps the network over it. A group is several stacks; its
logits are put together in peer order. Branches of one trunk are two stacks: the trunk, of
one member, and what follows it, of P.

The mesh has two axes. A stack that divides over `peer` is split over it: each device then
trains its own networks on the images of its `data` row, and along `peer` only logits are
exchanged. A stack that does not divide (a single pivot, say) is copied to every device
instead, and the images are split over `peer` as well.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from orc_jax import models, optimizers
from orc_jax.models.network import Network


def batch_axes(split: bool) -> tuple[str, ...]:
    """The mesh axes that split the batch of a stack, which `peer` splits or does not."""
    return ("data",) if split else ("data", "peer")


class Layout(NamedTuple):
    """Which peers are one stack, before it is built.

    Attributes:
      name: the network's name.
      peers: positions in the group of those that run through it.
      part: what of the network it is, a method of `Network`: "whole", "with_auxiliary",
        "trunk" (one member for all its peers) or "branch".
      kind: "train", "later" or "frozen", see `Method.kinds`.
      optimizer: its settings.
    """

    name: str
    peers: tuple[int, ...]
    part: str
    kind: str
    optimizer: ConfigDict


class Stack(NamedTuple):
    """Peers of one network and one optimizer.

    Attributes:
      name, peers, part, kind: see `Layout`.
      module: the network.
      optimizer: gradient → update, without the learning rate.
      learning_rate: step → learning rate.
      precision: type of the activations; parameters and statistics are float32.
      split: whether the mesh axis `peer` splits the members (else it splits the batch).
      micro_batches: in how many parts a device takes its images, one after the other.
      synchronised: whether batch norm's statistics are of the whole batch.
    """

    name: str
    peers: tuple[int, ...]
    part: str
    kind: str
    module: Network
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    precision: str
    split: bool
    micro_batches: int
    synchronised: bool

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """The mesh axes that split the batch."""
        return batch_axes(self.split)

    @property
    def spec(self) -> PartitionSpec:
        """How the leading axis of its variables lies on the mesh."""
        return PartitionSpec("peer") if self.split else PartitionSpec()


class Group(NamedTuple):
    """All the networks that train together.

    Attributes:
      stacks: a trunk comes right before its branches.
      mesh: devices, with axes `data` and `peer`.
      names: the networks' names in peer order.
      trunk_scale: what multiplies the gradient that branches send into their trunk.
    """

    stacks: tuple[Stack, ...]
    mesh: Mesh
    names: list[str]
    trunk_scale: float

    @property
    def size(self) -> int:
        return len(self.names)


@flax.struct.dataclass
class StackState:
    """Variables of a stack; every leaf has the peer axis first."""

    params: Any
    stats: Any
    opt_state: Any


def layout(config, method) -> list[Layout]:
    """The stacks of a checked config's group: equal network, optimizer and kind are one."""
    networks = [peer.model for peer in config.peers]
    settings = [optimizers.settings(config, peer) for peer in config.peers]
    if method.shares_trunk(config.method):
        everyone = tuple(range(len(networks)))
        return [
            Layout(networks[0], everyone, part, "train", settings[0])
            for part in ("trunk", "branch")
        ]
    kinds = method.kinds(config.method, len(networks))
    part = "with_auxiliary" if method.auxiliary_heads else "whole"
    if method.auxiliary_heads and set(kinds) != {"train"}:
        raise ValueError("auxiliary heads need peers that all train on the batch")
    found: dict = {}
    for i, key in enumerate(zip(networks, kinds, settings, strict=True)):
        found.setdefault((*key[:2], key[2].to_json(sort_keys=True)), []).append(i)
    return [
        Layout(network, tuple(members), part, kind, settings[members[0]])
        for (network, kind, _), members in found.items()
    ]


def is_split(members: tuple[int, ...], peer_axis: int) -> bool:
    """Whether a mesh axis `peer` of this size splits a stack of these members."""
    return peer_axis > 1 and len(members) % peer_axis == 0


def divisor(layouts: list[Layout], data: int, peer: int) -> int:
    """What the images of a batch must divide by on a mesh: what splits them for any stack."""
    whole = all(is_split(stack.peers, peer) for stack in layouts)
    return data if whole else data * peer


def best_split(layouts: list[Layout], devices: int, batch_size: int) -> int:
    """The size of the mesh axis `peer` for which the fewest gradients cross the wire.

    What a device exchanges in a ring all-reduce over m devices is 2 (m−1)/m of the gradients
    that it has: of P/peer networks over the devices of a `data` column for a stack that `peer`
    splits, of all P over all devices otherwise. (Networks count alike, logits as nothing.) With
    as many devices as equal networks, no gradient crosses at all. Of equal sizes the smallest;
    none that the batch does not divide by, if there is another.
    """

    def exchanged(peer):
        total = 0.0
        for stack in layouts:
            if stack.kind != "frozen":
                split = is_split(stack.peers, peer)
                columns = devices // peer if split else devices
                total += len(stack.peers) / (peer if split else 1) * (columns - 1) / columns
        return total

    if any(stack.part == "trunk" for stack in layouts):
        return 1
    sizes = [k for k in range(1, devices + 1) if devices % k == 0]
    fitting = [k for k in sizes if batch_size % divisor(layouts, devices // k, k) == 0]
    return min(fitting or sizes, key=exchanged)


def build(config, method, num_classes: int, steps_per_epoch: int, mesh: Mesh) -> Group:
    """The group that a config describes.

    Args:
      config, method: see `layout`.
      num_classes: outputs C of every network.
      steps_per_epoch: the unit of the learning-rate schedules.
      mesh: devices, with axes `data` and `peer`.
    """
    stacks = []
    for name, members, part, kind, settings in layout(config, method):
        split = is_split(members, mesh.shape["peer"])
        frozen = kind == "frozen"
        axes = batch_axes(split) if config.sync_batch_norm else None
        module = models.create(name, num_classes, axes)
        stacks.append(
            Stack(
                name=name,
                peers=members,
                part=part,
                kind=kind,
                module=module.rematerialised() if config.remat else module,
                optimizer=optax.identity() if frozen else optimizers.optimizer(settings),
                learning_rate=optimizers.schedule(settings, config.epochs, steps_per_epoch),
                precision=config.precision,
                split=split,
                micro_batches=config.micro_batches,
                synchronised=config.sync_batch_norm,
            )
        )
    names = [peer.model for peer in config.peers]
    scale = 1 / len(names) if method.rescale_trunk else 1.0
    return Group(tuple(stacks), mesh, names, scale)


def plain_variables(stacks, states, peer: int) -> dict:
    """A peer as a plain network: its branch with the trunk, without auxiliary heads.

    Args:
      stacks: of the group, or their `Layout`s.
      states: a `StackState` for each.
      peer: position in the group.

    Returns:
      {"params", "batch_stats"}, as the network's own `init` gives them.
    """
    variables: dict = {"params": {}, "batch_stats": {}}
    for stack, state in zip(stacks, states, strict=True):
        if peer in stack.peers:
            row = 0 if stack.part == "trunk" else stack.peers.index(peer)
            for name, tree in (("params", state.params), ("batch_stats", state.stats)):
                parts = {k: v for k, v in tree.items() if not k.startswith("auxiliary")}
                variables[name] |= select(parts, row)
    return variables


def abstract_variables(stack: Stack, image_shape: tuple[int, int, int]):
    """Shapes of the plain network's variables {"params", "batch_stats"}; nothing is computed."""
    images = jnp.zeros((1, *image_shape))
    return jax.eval_shape(
        lambda key: stack.module.init(key, images, train=False), jax.random.key(0)
    )


def fresh_outputs(stack, key, images):
    """What a network gives for images with fresh variables, and those variables."""
    method = "with_auxiliary" if stack.part == "with_auxiliary" else "whole"
    return stack.module.init_with_output(key, images, train=False, method=method)


def init(group: Group, key, image_shape, pretrained: dict[int, Any]) -> tuple[StackState, ...]:
    """Initial variables of the group.

    Args:
      group: the networks.
      key: a fresh peer's weights depend on it and on the peer's position alone; a trunk is
        that of peer 0.
      image_shape: (height, width, channels).
      pretrained: peer → plain network's variables {"params", "batch_stats"} to start from
        instead.
    """
    # One member at a time: random numbers of a whole stack compile three times as long.
    images, fresh, states = jnp.zeros((1, *image_shape)), {}, []
    for stack in group.stacks:
        if (stack.name, stack.part) not in fresh:
            fresh[stack.name, stack.part] = jax.jit(
                lambda key, s=stack: _part(s, fresh_outputs(s, key, images)[1])
            )
        members = []
        for peer in stack.peers[: _size(stack)]:
            variables = _part(stack, pretrained.get(peer, {"params": {}, "batch_stats": {}}))
            if peer not in pretrained or stack.part == "with_auxiliary":
                new = fresh[stack.name, stack.part](jax.random.fold_in(key, peer))
                variables = {name: tree | variables[name] for name, tree in new.items()}
            members.append(variables)
        states.append(jax.jit(lambda *v, s=stack: _stacked(s, v))(*members))
    return tuple(states)


def abstract(group: Group, image_shape: tuple[int, int, int]) -> tuple[StackState, ...]:
    """Shapes of what `init` gives; nothing is computed."""

    def state(stack, key):
        variables = _part(stack, fresh_outputs(stack, key, jnp.zeros((1, *image_shape)))[1])
        return _stacked(stack, [variables] * _size(stack))

    key = jax.random.key(0)
    return tuple(jax.eval_shape(lambda k, s=stack: state(s, k), key) for stack in group.stacks)


def _size(stack) -> int:
    """How many members the stack has."""
    return 1 if stack.part == "trunk" else len(stack.peers)


def _part(stack, variables):
    """Of a network's variables, those of the stack's part."""
    if stack.part not in ("trunk", "branch"):
        return variables
    keys, wanted = stack.module.branch_keys(), stack.part == "branch"
    return {
        name: {k: v for k, v in tree.items() if (k in keys) == wanted}
        for name, tree in variables.items()
    }


def _stacked(stack, variables):
    variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables)
    params = variables["params"]
    return StackState(params, variables["batch_stats"], jax.vmap(stack.optimizer.init)(params))


def shardings(group: Group, states: tuple[StackState, ...]) -> tuple[StackState, ...]:
    """For every leaf, how it lies on the mesh."""
    return tuple(
        jax.tree.map(lambda _, s=stack: NamedSharding(group.mesh, s.spec), state)
        for stack, state in zip(group.stacks, states, strict=True)
    )


def select(states, slots):
    """The members at these positions of the leading axis."""
    return jax.tree.map(lambda x: x[slots], states)
