"""What a run says before its first step: what it trains, and what is seldom meant."""

from collections.abc import Iterator
from pathlib import Path

from orc_jax import models, peers
from orc_jax.errors import counted
from orc_jax.prepare import Setup
from orc_jax.runtime.display import Display


def introduce(setup: Setup, workdir: Path, step: int, is_unrecorded: bool, shown: Display) -> None:
    """Print what is trained, on which data, devices and files, and from which step on.

    Args:
      setup: of the run.
      workdir: its work directory.
      step: number of steps done.
      is_unrecorded: whether the last of them still is to be evaluated.
      shown: where it is printed.
    """
    assert setup.train_split is not None  # None only in a setup for evaluation
    devices = setup.group.mesh.devices
    names = ", ".join(setup.group.names)
    val = "" if setup.val_split is None else f"{len(setup.val_split.labels):,} validation, "
    test = counted(len(setup.test_split.labels), "test image")
    shown.say(
        f"{setup.config.method.name}: {names} on {setup.config.data.name} "
        f"({len(setup.train_split.labels):,} training, {val}{test}); "
        f"{devices.shape[0]} × {devices.shape[1]} {devices.flat[0].platform} devices "
        f"(data × peer); files in {workdir}"
    )
    for warning in _warnings(setup):
        shown.say(f"warning: {warning}")
    if step == setup.config.epochs * setup.steps_per_epoch and not is_unrecorded:
        shown.say("this run is finished")
    else:
        shown.say(f"resumed at step {step}" if step else "compiling the step …")


def _warnings(setup) -> Iterator[str]:
    """Yield what is allowed and yet seldom meant."""
    epochs, (height, width, _) = setup.config.epochs, setup.dataset.image_shape
    for stack in peers.layout(setup.config, setup.method):
        decays = tuple(stack.optimizer.decay_epochs)
        never = stack.optimizer.schedule == "step" and all(e >= epochs for e in decays)
        if stack.changes and never:
            yield (
                f"the learning rate of peers {', '.join(map(str, stack.peers))} never falls, "
                f"because none of its decay_epochs {decays} is below epochs, {epochs}: set "
                "--config.optimizer.decay_epochs, or --config.optimizer.schedule=cosine"
            )
    for name in dict.fromkeys(setup.group.names):
        usual = models.entry(name).size
        if usual >= 224 and min(height, width) <= usual // 4:  # those for ImageNet
            twin = models.twin(name)
            yield (
                f"{name} is made for images of {usual}×{usual}, and begins by making these of "
                f"{height}×{width} much smaller" + (f"; {twin} is made for small ones" * bool(twin))
            )
    if (count := len(setup.test_split.labels)) < 50:
        yield f"with {counted(count, 'test image')}, one is {100 / count:.1f} % of the accuracy"
