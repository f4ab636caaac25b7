"""Optimizers and learning-rate schedules of optax, by name.

The learning rate is applied outside of the optimizer, as a function of the run's step. A peer that
a method pauses for some steps therefore does not lag behind in its schedule.
"""

import optax
from ml_collections import ConfigDict

# Name → function from the settings to a transformation without a learning rate. Weight decay is
# added to the gradient before everything else, as in PyTorch; adamw alone decouples it.
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
    """Return the optimizer settings of a peer: the run's, with the peer's own in their place.

    Args:
      config: the whole config.
      peer: one of its `peers`, or its `pretrain`.
    """
    merged = ConfigDict(config.optimizer.to_dict())
    merged.update({key: value for key, value in peer.optimizer.items() if value is not None})
    return merged


def optimizer(settings) -> optax.GradientTransformation:
    """Return the optimizer of the given settings, without a learning rate.

    The caller subtracts learning rate × update from the parameters.

    Args:
      settings: of `settings`, or `config.optimizer`.
    """
    return OPTIMIZERS[settings.name](settings)


def resets(settings, steps_per_epoch: int) -> tuple[int, ...]:
    """Return the steps before which the optimizer's state becomes zeros, as in a new optimizer.

    Args:
      settings: of `settings`.
      steps_per_epoch: of the run.
    """
    if settings.schedule != "step" or not settings.reset_at_decay:
        return ()
    return tuple(round(epoch * steps_per_epoch) for epoch in settings.decay_epochs)


def schedule(settings, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    It rises linearly during the warm-up and then follows the schedule that the settings name.
    `decay_epochs` count from the start of the run and include the warm-up, as in papers.

    Args:
      settings: of `settings`, or `config.optimizer`.
      epochs: of the run.
      steps_per_epoch: of the run.
    """
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    rate = settings.learning_rate
    if settings.schedule == "step":
        boundaries = {
            round(epoch * steps_per_epoch) - warmup: settings.decay
            for epoch in settings.decay_epochs
        }
        main = optax.piecewise_constant_schedule(rate, boundaries)
    elif settings.schedule == "cosine":
        main = optax.cosine_decay_schedule(rate, max(1, epochs * steps_per_epoch - warmup))
    else:
        main = optax.constant_schedule(rate)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), main], [warmup])
