"""Teachers that are trained before their group: which ones, with which settings, and where.

A group's run trains the teachers that it wants pretrained itself, each as a run of its own in
`WORKDIR/teachers`, unless `peers[i].init_from` names a trained network.
"""

from pathlib import Path
from typing import Any, NamedTuple

from orc_jax import config as configs
from orc_jax import methods


class Teacher(NamedTuple):
    """A teacher and the run that trains it.

    Attributes:
      peer: its position in the group.
      config: of the run.
      workdir: of the run.
    """

    peer: int
    config: Any
    workdir: Path

    @property
    def network(self) -> Path:
        """The saved network that the run leaves behind."""
        return self.workdir / "networks" / str(len(self.config.peers) - 1)

    @property
    def is_trained(self) -> bool:
        """Whether the run is finished."""
        return (self.network / "network.json").exists()


def wanted(config) -> dict[int, list[int]]:
    """Return which peers of a group must be trained first, as far as the config names no network.

    Args:
      config: the whole config, checked.

    Returns:
      Peer → the peers that teach it then, by the method of the group; [] for plain training.
    """
    positions, size = methods.get(config.method.name).positions, len(config.peers)
    kinds = positions.kinds(config.method, size)
    found: dict[int, list[int]] = {i: [] for i in range(size) if kinds[i] == "frozen"}
    found |= positions.pretrained(config.method, size)
    return {i: found[i] for i in sorted(found) if not config.peers[i].init_from}


def teachers(config, workdir: Path) -> list[Teacher]:
    """Return the teachers that the run of a config trains first, in their order.

    Args:
      config: the whole config, checked.
      workdir: of the run.
    """
    found: dict[int, Teacher] = {}
    for peer, taught_by in wanted(config).items():
        own = configs.copied(config)
        if taught_by:
            own.peers = tuple(own.peers[i] for i in (*taught_by, peer))
            for i, other in enumerate(taught_by):
                own.peers[i].init_from = own.peers[i].init_from or str(found[other].network)
        else:
            own.method = methods.defaults("ind")
            own.peers = (own.peers[peer],)
        own.epochs = config.pretrain.epochs or config.epochs
        given = config.pretrain.optimizer.items()
        own.peers[-1].optimizer.update({key: value for key, value in given if value is not None})
        if own.mesh.peer != 1:
            own.mesh.peer, own.mesh.data = 1, -1  # one network learns: the batch is split alone
        directory = Path(workdir) / "teachers" / f"{peer}-{own.peers[-1].model}"
        found[peer] = Teacher(peer, own, directory)
    return list(found.values())
