"""The mesh of devices: how networks and batches lie on it.

The mesh has two axes, `data` and `peer`. A stack that divides over `peer` is split over it: each
device trains its own networks on the images of its `data` row, and only outputs are exchanged
along `peer`. A stack that does not divide (a single pivot, say) is copied to every device, and
the images are split over `peer` as well.
"""

import jax
import numpy as np


def batch_axes(split: bool) -> tuple[str, ...]:
    """Return the mesh axes that split the batch of a stack, which `peer` splits or does not."""
    return ("data",) if split else ("data", "peer")


def is_split(members: tuple[int, ...], peer_axis: int) -> bool:
    """Return whether a mesh axis `peer` of this size splits a stack of these members."""
    return peer_axis > 1 and len(members) % peer_axis == 0


def divisor(layouts, data: int, peer: int) -> int:
    """Return what the batch size must be a multiple of on a mesh, for any stack.

    Args:
      layouts: `peers.Layout`s.
      data, peer: the shape of the mesh.
    """
    whole = all(is_split(stack.peers, peer) for stack in layouts)
    return data if whole else data * peer


def best_split(layouts, devices: int, batch_size: int) -> int:
    """Return the size of the mesh axis `peer` for which devices exchange the fewest gradients.

    In a ring all-reduce over m devices, a device exchanges 2 (m−1)/m of the gradients that it has:
    those of P/peer networks over the devices of a `data` column for a stack that `peer` splits,
    and those of all P networks over all devices otherwise. (All networks count the same, logits
    count nothing.) With as many devices as equal networks, no gradient is exchanged at all.

    Of equally good sizes it is the smallest, and one that lets the batch be divided if any does.

    Args:
      layouts: `peers.Layout`s.
      devices: how many there are.
      batch_size: images over all devices.
    """

    def exchanged(peer):
        total = 0.0
        for stack in layouts:
            if stack.changes:
                split = is_split(stack.peers, peer)
                columns = devices // peer if split else devices
                total += len(stack.peers) / (peer if split else 1) * (columns - 1) / columns
        return total

    if any(stack.shared_trunk for stack in layouts):
        return 1
    sizes = [k for k in range(1, devices + 1) if devices % k == 0]
    fitting = [k for k in sizes if batch_size % divisor(layouts, devices // k, k) == 0]
    return min(fitting or sizes, key=exchanged)


def put_global(tree, shardings):
    """Put arrays that every process has on the mesh.

    Args:
      tree: NumPy or local arrays, equal in every process.
      shardings: one for every leaf, or one for all.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def put(x, sharding):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, shardings)
