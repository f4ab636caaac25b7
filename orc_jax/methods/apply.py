"""Applying a method to a batch: its phase, its loss, and the gradients of that."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from orc_jax import losses
from orc_jax.errors import UserError
from orc_jax.methods.method import Batch, Method, Roles
from orc_jax.models.network import Outputs
from orc_jax.peers import CHANGING


class Applied(NamedTuple):
    """What a method makes of a batch.

    Attributes:
      stacks: the networks, with the teachers that were updated first.
      batch: with the new logits of the teachers that were updated first, and the roles.
      d_outputs: the gradient of the loss for `batch.outputs`.
      d_own: the gradient for the parameters of the method's own network.
      own_stats: running statistics of that network.
      metrics: name → float32, a number or [P].
    """

    stacks: Any
    batch: Batch
    d_outputs: Outputs
    d_own: Any
    own_stats: Any
    metrics: dict[str, jax.Array]


# Of what a method computes: a GPU would round the inputs of products to TF32.
_in_full_float32 = jax.default_matmul_precision("highest")


def apply_method(
    config,
    method: Method,
    stacks,
    batch: Batch,
    own,
    key,
    update_teachers: Callable,
    decided: Callable = lambda arrays: arrays,
) -> Applied:
    """Run the phase and the loss of a method, and differentiate the loss.

    Args:
      config: `config.method`.
      method: of the run.
      stacks: variables of the networks, for `update_teachers`.
      batch: without roles.
      own: {"params", "batch_stats"} of the method's own network; both {} without one.
      key: for the phase.
      update_teachers: (stacks, logits, `TeacherUpdate`) → stacks with the updated peers, logits
        with theirs, and their losses [P].
      decided: arrays → those of the first device.

    Raises:
      UserError: a role or a term of the loss has the wrong shape, type or name.
    """
    size = len(batch.logits)
    kinds = np.array(method.positions.kinds(config, size))
    roles = Roles(learns=jnp.asarray(np.isin(kinds, CHANGING)))
    if method.phase:
        roles = _in_full_float32(method.phase)(config, lax.stop_gradient(batch), key)
        _check_roles(method, roles, size)
        roles = _decided(roles, decided)
    taught = {}
    for update in roles.updates:
        if method.needs.own_augmentation or method.needs.shared_trunk(config):
            raise ValueError("a teacher's update needs whole networks that all see the same images")
        update = update._replace(loss=_in_full_float32(update.loss))
        stacks, logits, taught[update.name] = update_teachers(stacks, batch.logits, update)
        batch = batch._replace(outputs=replace(batch.outputs, logits=logits))
    batch = batch._replace(roles=roles)
    own_network = method.own_network and method.own_network(config, size)

    @_in_full_float32
    def total(outputs, own_params):
        seen, stats = batch._replace(outputs=outputs), own["batch_stats"]
        if own_network:
            variables = {"params": own_params, "batch_stats": stats}
            answer, updated = own_network.apply(variables, seen, train=True, mutable="batch_stats")
            seen, stats = seen._replace(own_output=answer), updated.get("batch_stats", {})
        terms = method.loss(config, seen)
        _check_terms(method, terms, size)
        return sum(term.sum() for term in terms.values()), (terms, stats)

    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
    (d_outputs, d_own), (terms, own_stats) = gradient(batch.outputs, own["params"])

    metrics = dict(roles.metrics)
    terms |= taught
    metrics["loss"] = jnp.zeros(size) + sum(term for term in terms.values() if term.ndim)
    metrics |= {f"term/{name}": term.sum() for name, term in terms.items()}
    if roles.promoted is not None:
        metrics["promoted"] = roles.promoted
    metrics["learned"] = roles.learns
    metrics["top1"] = 100.0 * (batch.logits.argmax(axis=-1) == batch.labels).mean(axis=1)
    metrics["diversity"] = losses.diversity(batch.logits).mean()
    metrics["steps"] = jnp.ones(())
    # Sorted, so that the program is the same in every process and is found in the cache.
    metrics = {name: jnp.asarray(metrics[name], jnp.float32) for name in sorted(metrics)}
    return Applied(stacks, batch, d_outputs, d_own, own_stats, metrics)


def _decided(roles: Roles, decided: Callable) -> Roles:
    """Return roles with the arrays of the first device."""
    (learns, promoted, learns_from, metrics), of_updates = decided(
        (roles[:4], [(update.learners, update.mix) for update in roles.updates])
    )
    updates = [
        update._replace(learners=learners, mix=mix)
        for update, (learners, mix) in zip(roles.updates, of_updates, strict=True)
    ]
    return Roles(learns, promoted, learns_from, metrics, tuple(updates))


@_in_full_float32
def ensembles(config, method: Method, batch: Batch, own) -> dict[str, Any]:
    """Compute the logits [B, C] of the method's ensembles, by name, from outputs in eval mode.

    Args:
      config, method, own: see `apply_method`.
      batch: without roles.
    """
    if method.own_network:
        network = method.own_network(config, len(batch.logits))
        batch = batch._replace(own_output=network.apply(own, batch, train=False))
    return {name: ensemble.logits(config, batch) for name, ensemble in method.ensembles.items()}


def _check_terms(method, terms, size):
    """Raise `UserError` for what a loss must not return; shapes are known before it compiles."""
    where = f"{_file(method.loss)}: loss"
    if not isinstance(terms, dict) or not terms:
        raise UserError(f"{where} returns {_shown(terms)}, expected a dict: name of a term → term")
    for name, term in terms.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"{where} names a term {name!r}, expected a name such as 'kd'")
        if np.shape(term) not in ((size,), ()) or not _is(term, jnp.floating):
            raise UserError(
                f"{where} returns the term {name!r} as {_shown(term)}, expected floating-point "
                f"numbers of shape ({size},), one for each peer, or one number for the group"
            )


def _check_roles(method, roles, size):
    """Raise `UserError` for what a phase must not return."""
    where = f"{_file(method.phase)}: phase"
    if not isinstance(roles, Roles):
        raise UserError(f"{where} returns {_shown(roles)}, expected Roles")
    for name, value, shape, kind, text in (
        ("learns", roles.learns, (size,), jnp.bool_, "bool"),
        ("promoted", roles.promoted, (size,), jnp.bool_, "bool"),
        ("learns_from", roles.learns_from, (size, size), jnp.generic, "bool or numbers"),
    ):
        if value is None and name != "learns":
            continue
        if np.shape(value) != shape or not _is(value, kind):
            raise UserError(f"{where} gives {name} as {_shown(value)}, expected {text} {shape}")
    for name, value in roles.metrics.items():
        if np.shape(value) not in ((size,), ()):
            raise UserError(
                f"{where} gives the metric {name!r} as {_shown(value)}, expected shape ({size},), "
                "one number for each peer, or one number"
            )


def _file(function) -> str:
    code = getattr(function, "__code__", None)
    return code.co_filename if code else repr(function)


def _is(value, kind) -> bool:
    return isinstance(value, jax.Array | np.ndarray) and jnp.issubdtype(value.dtype, kind)


def _shown(value) -> str:
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__
