"""ORC's feedback samples: what the students got wrong and ask their teachers to study."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def feedback_share(
    cross_entropy: Float[Array, " P"], asks: Bool[Array, " P"]
) -> Float[Array, " P"]:
    """The share of the feedback samples that each network asks for: softmax(CE)."""
    return jax.nn.softmax(jnp.where(asks, cross_entropy, -jnp.inf))


def draw_feedback(
    key,
    cross_entropy: Float[Array, "P B"],
    wrong: Bool[Array, "P B"],
    students: Bool[Array, " P"],
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """B feedback samples: positions in the batch, and for each the student that asked.

    A slot goes to a student by its share, then to one of the samples that it got wrong,
    uniformly. A student without errors passes its share on to the others. If nobody
    erred, F is the batch from the highest loss down, and the asker is -1.
    """
    asker_key, sample_key = jax.random.split(key)
    batch = wrong.shape[1]
    errors = wrong.sum(axis=1)
    asks = students & (errors > 0)
    share = feedback_share(cross_entropy.mean(axis=1), asks)
    asker = jax.random.categorical(asker_key, jnp.log(share), shape=(batch,))

    wrong_first = jnp.argsort(~wrong, axis=1)
    nth = jax.random.randint(sample_key, (batch,), 0, jnp.maximum(errors[asker], 1))
    sample = wrong_first[asker, nth]

    hardest = jnp.argsort(-jnp.sum(cross_entropy * students[:, None], axis=0))
    anyone = asks.any()
    return jnp.where(anyone, sample, hardest), jnp.where(anyone, asker, -1)
