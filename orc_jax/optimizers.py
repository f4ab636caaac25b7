"""Optimizers and learning-rate schedules by name, from optax.

The learning rate is applied outside the optimizer, as a function of the global step, so
that a peer which a method pauses for a while does not lag behind in its schedule.
"""

import optax
from ml_collections import ConfigDict

# name → (momentum, nesterov, weight_decay) → transformation without a learning rate.
# Weight decay is coupled (added to the gradient first) as in PyTorch, but for adamw.
OPTIMIZERS = {
    "sgd": lambda s: optax.chain(
        optax.add_decayed_weights(s.weight_decay),
        optax.trace(s.momentum, s.nesterov) if s.momentum else optax.identity(),
    ),
    "adam": lambda s: optax.chain(
        optax.add_decayed_weights(s.weight_decay), optax.scale_by_adam(b1=s.momentum)
    ),
    "adamw": lambda s: optax.chain(
        optax.scale_by_adam(b1=s.momentum), optax.add_decayed_weights(s.weight_decay)
    ),
}

SCHEDULES = ("constant", "step", "cosine")


def settings(config, peer) -> ConfigDict:
    """The run's optimizer settings with those that the peer sets for itself."""
    merged = ConfigDict(config.optimizer.to_dict())
    merged.update({k: v for k, v in peer.optimizer.items() if v is not None})
    return merged


def optimizer(settings) -> optax.GradientTransformation:
    """Gradient → update; the caller subtracts learning rate × update."""
    return OPTIMIZERS[settings.name](settings)


def schedule(settings, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Step → learning rate: linear warm-up, then constant, step or cosine.

    `decay_epochs` are counted from the run's start, warm-up included, as papers do.
    """
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    rate = settings.learning_rate
    if settings.schedule == "step":
        boundaries = {
            round(e * steps_per_epoch) - warmup: settings.decay for e in settings.decay_epochs
        }
        main = optax.piecewise_constant_schedule(rate, boundaries)
    elif settings.schedule == "cosine":
        main = optax.cosine_decay_schedule(rate, max(1, epochs * steps_per_epoch - warmup))
    else:
        main = optax.constant_schedule(rate)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), main], [warmup])
