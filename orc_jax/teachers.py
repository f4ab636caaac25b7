"""Teachers that learn before they teach: an optimizer step of their own, inside the step."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from orc_jax import passes
from orc_jax.passes import Pass
from orc_jax.peers import Group, Stack, select


def update_teachers(group: Group, images, studied, step, stacks, logits, update):
    """Give some peers their optimizer step before they teach.

    Which peers these are is known only at run time, so each stack runs as many networks as could
    learn at once, with the learners' weights gathered into them. (A `lax.cond` per peer would run
    none in vain, but XLA's CPU convolutions are 30 times slower inside a conditional.)

    Args:
      group: the networks.
      images, studied: the batch, and the images to learn from, as in `inputs_of`.
      step: int32 scalar.
      stacks: a `StackState` for each stack.
      logits: whole.
      update: the `TeacherUpdate`.

    Returns:
      Stacks with the updated peers, logits in which theirs are those of their new weights on the
      batch itself, and their losses [P] (0 for the others).
    """

    def total(learned):
        losses = update.loss(learned, before, update.mix)
        return losses.sum(), losses

    before, new_stacks, losses_of = logits, [], jnp.zeros(group.size)
    for stack, state in zip(group.stacks, stacks, strict=True):
        rows = np.array(stack.peers)
        if not update.among[rows].any():
            new_stacks.append(state)
            continue
        active = passes.members(stack, update.learners)
        slots = jnp.arange(len(active))
        if update.at_most < len(active):
            slots = jnp.argsort(~active)[: update.at_most]
        learners = state.replace(members=select(state.members, slots))

        learned = passes.forward(stack, learners, passes.inputs_of(stack, studied).at(slots))
        d_logits, losses = jax.grad(total, has_aux=True)(
            passes.over_batch(stack, learned.outputs.logits)
        )
        grads = _gradients_of_logits(stack, learned, d_logits)
        learners = passes.update(
            stack, learners, grads, learned.stats, step, active[slots], active[slots]
        )

        # They teach in train mode, by the statistics of this batch, like their students.
        teaching = passes.forward(stack, learners, passes.inputs_of(stack, images).at(slots))
        new_logits = passes.over_batch(stack, teaching.outputs.logits)
        new_stacks.append(state.replace(members=_put(state.members, slots, learners.members)))

        # From the slots to the members of this device, and to those of all.
        new_logits = jnp.zeros((len(active), *logits.shape[1:])).at[slots].set(new_logits)
        losses = jnp.zeros(len(active)).at[slots].set(losses)
        new_logits, losses = passes.over_members(stack, (new_logits, losses))
        is_learner = update.learners[rows]
        new_logits = passes.where(is_learner, lax.stop_gradient(new_logits), logits[rows])
        logits = logits.at[rows].set(new_logits)
        losses_of = losses_of.at[rows].set(jnp.where(is_learner, losses, 0.0))
    return tuple(new_stacks), logits, losses_of


def _gradients_of_logits(stack: Stack, stack_pass: Pass, d_logits):
    """Return the gradients of the parameters for a loss of the members' logits alone.

    Args:
      stack: the networks.
      stack_pass: of `forward`.
      d_logits: [members, B, C], the loss's gradient for the logits of the whole batch.
    """
    d_outputs = jax.tree.map(jnp.zeros_like, stack_pass.outputs)
    d_outputs = d_outputs.replace(logits=passes.share(d_logits, stack.batch_axes, axis=1))
    assert stack_pass.pullback is not None
    return lax.psum(stack_pass.pullback(d_outputs), stack.batch_axes)


def _put(tree, slots, chosen):
    """Return the tree with the entries at these positions of the leading axis replaced."""
    return jax.tree.map(lambda x, y: x.at[slots].set(y), tree, chosen)
