"""Draw where in an image each network looks (Grad-CAM)."""

from pathlib import Path

from absl import flags

from orc_jax import prepare
from orc_jax.commands import command_line
from orc_jax.errors import UserError, counted
from orc_jax.insight.gradcam import classes_of, draw
from orc_jax.insight.inspect import of_network, of_run, of_state, pictures
from orc_jax.runtime.workdir import check_writable


def main() -> None:
    """Run the command."""
    workdir = flags.DEFINE_string("workdir", "", "Work directory of a run, for all of its peers.")
    network = flags.DEFINE_string(
        "network", "", "Directory of a saved network, in place of --workdir."
    )
    images = flags.DEFINE_list(
        "images",
        None,
        "Image files, folders, and test images of the run as test:3 or test:0-7.",
        required=True,
    )
    classes = flags.DEFINE_list(
        "classes",
        [],
        "Classes whose evidence is shown: one for all images or one for each, or true for the "
        "labels (default: those predicted).",
    )
    out = flags.DEFINE_string(
        "out", "", "Directory of the PNGs (default: gradcam, in the work directory or here)."
    )
    checkpoint = flags.DEFINE_string(
        "checkpoint", "last", "Checkpoint of the run: last, best, or its step."
    )
    data_dir = flags.DEFINE_string("data_dir", "", "Directory of the run's data, if it was moved.")

    def command():
        if bool(workdir.value) == bool(network.value):
            raise UserError("give either --workdir=RUN or --network=DIR")
        # Not in the saved network's directory, which is replaced when its run is called again.
        directory = Path(out.value or Path(workdir.value) / "gradcam")
        check_writable(directory, "--out")
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
        written = draw(subject, shown, classes_of(classes.value, subject, shown), directory)
        print(f"{counted(len(written), 'figure')} in {directory}")

    command_line.run(command, example="--workdir=runs/digits-switokd --images=test:0-7")
