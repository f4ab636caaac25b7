"""`python -m orc_jax gradcam --workdir=RUN --images=…`: draws where in an image each peer looks."""

from pathlib import Path

from absl import flags

from orc_jax import prepare
from orc_jax.commands import command_line
from orc_jax.errors import UserError
from orc_jax.insight.gradcam import classes_of, draw
from orc_jax.insight.inspect import of_network, of_run, of_state, pictures


def main() -> None:
    """The command line."""
    workdir = flags.DEFINE_string("workdir", "", "Work directory of a run: all of its peers.")
    network = flags.DEFINE_string("network", "", "Or the directory of a saved network.")
    images = flags.DEFINE_list(
        "images",
        None,
        "Files, folders, and test:3 or test:0-7 of a run's test images.",
        required=True,
    )
    classes = flags.DEFINE_list(
        "classes", [], 'Whose evidence: one class or one an image; "true"; default: as predicted.'
    )
    out = flags.DEFINE_string(
        "out", "", "Where the PNGs go (default: gradcam, in the work directory or here)."
    )
    checkpoint = flags.DEFINE_string(
        "checkpoint", "last", "last, best, or the step of a checkpoint of the run."
    )
    data_dir = flags.DEFINE_string("data_dir", "", "Where the run's data is, if it was moved.")

    def command():
        if bool(workdir.value) == bool(network.value):
            raise UserError("give either --workdir=RUN or --network=DIR")
        if workdir.value:
            if any(name.startswith("test:") for name in images.value):
                setup, state, _ = prepare.restore(
                    workdir.value, checkpoint.value, data_dir=data_dir.value
                )
                subject = of_state(setup, state)
            else:
                subject = of_run(workdir.value, checkpoint.value)
        else:
            subject = of_network(network.value)
        shown = pictures(images.value, subject)
        # Never into the network, which a run saves anew when it is called again.
        where = Path(out.value or Path(workdir.value) / "gradcam")
        written = draw(subject, shown, classes_of(classes.value, subject, shown), where)
        print(f"{len(written)} figures in {where}")

    command_line.run(command)
