"""Gather the data of templates/page.html: each section's data is from the function of its name."""

import base64
import io
import json
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image

from orc_jax import config as configs
from orc_jax.insight import figures, gradcam
from orc_jax.insight.inspect import of_test
from orc_jax.insight.report import findings, history, plots
from orc_jax.insight.report.findings import Findings

EXAMPLES = 3  # images shown for each pair of confused classes
LOOKS = 4  # images shown with Grad-CAM
PAIRS = 6  # pairs of confused classes
SMALL = 100  # pixels; smaller images are scaled up with sharp pixels


class Table(NamedTuple):
    """A table, with numbers aligned to the right.

    Attributes:
      head: cells of the header.
      rows: cells of each row.
      numbers_from: first column of numbers.
    """

    head: list[str]
    rows: list[list[str]]
    numbers_from: int = 1


class Thumbnail(NamedTuple):
    """A small image.

    Attributes:
      source: data URI.
      alt: text for readers who do not see the image.
      text: below the image.
      sharp: whether it is scaled up with sharp pixels.
    """

    source: str
    alt: str
    text: str = ""
    sharp: bool = False


@dataclass(frozen=True)
class Gallery:
    """A figure of images.

    Attributes:
      title: above the figure.
      thumbnails: side by side.
      below: an image below them, or None.
    """

    title: str
    thumbnails: list[Thumbnail]
    below: Thumbnail | None = None

    template: ClassVar[str] = "gallery.html"
    unit: ClassVar[str] = ""
    text: ClassVar[str] = ""


def context(runs: list[Findings]) -> dict:
    """Gather the data of the whole page."""
    return {
        "title": "Report: " + ", ".join(str(run.workdir) for run in runs),
        "colours": {"light": figures.COLOURS, "dark": figures.COLOURS_ON_DARK},
        "heat": figures.heat_colours(),
        "overview": overview(runs),
        "runs": [sections(run) for run in runs],
    }


def sections(run: Findings) -> dict:
    """Gather the data of all sections about a run."""
    return {
        "workdir": str(run.workdir),
        "config": run.setup.config,
        "epoch": epoch(run),
        "test_images": len(run.answers.labels),
        "classes": run.setup.dataset.num_classes,
        "networks": networks(run),
        "configuration": configuration(run),
        "curves": history.curves(run),
        "roles": history.roles(run),
        "loss_terms": history.loss_terms(run),
        "switches": history.switches(run),
        "confusion": confusion(run),
        "confused": confused(run),
        "calibration": calibration(run),
        "agreement": agreement(run),
        "looks": looks(run),
    }


def epoch(run: Findings) -> str:
    """Format how many epochs the run had done at the checkpoint."""
    return f"{round(run.step / run.setup.steps_per_epoch, 2):g}"


def overview(runs: list[Findings]) -> Table:
    """Tabulate the accuracy of each run's kept networks and ensemble."""
    rows = []
    for run in runs:
        top1 = 100 * run.answers.correct.mean(axis=1)
        kept = ", ".join(f"{top1[peer]:.2f}" for peer in run.setup.kept)
        method = run.setup.config.method.name
        rows.append([str(run.workdir), method, epoch(run), kept, f"{top1[-1]:.2f}"])
    head = ["run", "method", "epoch", "top-1 % of the kept networks", "ensemble"]
    return Table(head, rows, numbers_from=3)


def networks(run: Findings) -> Table:
    """Tabulate accuracy, loss and calibration of each peer and the ensemble."""
    answers, setup, rows = run.answers, run.setup, []
    for i, name in enumerate(run.answering):
        ece, _ = findings.calibration(answers.confidence[i], answers.correct[i])
        rows.append(
            [
                name + (", kept" if i in setup.kept else ""),
                f"{setup.num_params[i]:,}" if i < len(setup.num_params) else "",
                f"{100 * answers.correct[i].mean():.2f}",
                f"{100 * answers.top5[i].mean():.2f}",
                f"{answers.loss[i].mean():.4f}",
                f"{100 * ece:.2f}",
            ]
        )
    head = ["network", "parameters", "top-1 %", "top-5 %", "loss", "ECE %"]
    if run.setup.dataset.num_classes <= 5:  # then top-5 is always 100 %
        for row in (head, *rows):
            del row[3]
    if any(run.promotions):
        head.append("promoted %")
        for i, row in enumerate(rows):
            steps = run.promotions[i : i + 1]  # empty for the ensemble
            row.append("".join(f"{100 * count / max(run.step, 1):.1f}" for count in steps))
    return Table(head, rows)


def configuration(run: Findings) -> dict[str, Table]:
    """Tabulate the settings that differ from the defaults, and all settings."""
    config = run.setup.config
    default = configs.default_config(config.method.name)
    default.peers = tuple(configs.peer("") for _ in config.peers)
    settings, defaults = (configs.flat(json.loads(configs.to_json(c))) for c in (config, default))
    rows = {key: [key, json.dumps(v, ensure_ascii=False)] for key, v in settings.items()}
    changed = [key for key, value in settings.items() if value != defaults[key]]
    head = ["setting", "value"]
    return {
        "changed": Table(head, [rows[key] for key in changed], numbers_from=2),
        "all": Table(head, list(rows.values()), numbers_from=2),
    }


def confusion(run: Findings) -> list[plots.Matrix]:
    """Plot a confusion matrix for each peer."""
    answers, classes = run.answers, run.setup.dataset.class_names
    return [
        plots.matrix(title, findings.confusion(answers.labels, predicted, len(classes)), classes)
        for title, predicted in zip(run.titles, answers.predicted[:-1], strict=True)
    ]


def confused_pairs(run: Findings) -> list[tuple[int, int, int]]:
    """Find the most frequent mistakes of all kept networks, see `findings.most_confused`."""
    answers, classes = run.answers, run.setup.dataset.num_classes
    matrices = [
        findings.confusion(answers.labels, answers.predicted[i], classes) for i in run.setup.kept
    ]
    return findings.most_confused(np.sum(matrices, axis=0), PAIRS)


def mistaken(run: Findings, label: int, predicted: int) -> list[int]:
    """Find the images of class `label` for which a kept network predicts class `predicted`.

    Returns:
      Indices into `run.answers`, the images that most networks got wrong first.
    """
    answers = run.answers
    matches = (answers.predicted[run.setup.kept] == predicted).sum(axis=0)
    wrong = matches * (answers.labels == label)
    return np.argsort(-wrong, kind="stable")[: np.count_nonzero(wrong)].tolist()


def confused(run: Findings) -> list[Gallery]:
    """Show images for the most frequent mistakes."""
    answers, names, galleries = run.answers, run.setup.dataset.class_names, []
    for label, predicted, count in confused_pairs(run):
        shown = []
        for i in mistaken(run, label, predicted)[:EXAMPLES]:
            wrong = [
                str(peer) for peer in run.setup.kept if answers.predicted[peer, i] == predicted
            ]
            text = f"by {', '.join(wrong)}"
            pixels = of_test(run.subject, int(answers.positions[i])).pixels
            shown.append(thumbnail(pixels, text, f"test image of {names[label]}, {text}"))
        galleries.append(
            Gallery(f"{names[label]} predicted as {names[predicted]}: {count} ×", shown)
        )
    return galleries


def calibration(run: Findings) -> list[plots.Plot]:
    """Plot a reliability diagram for each peer and the ensemble."""
    diagrams = []
    for i, name in enumerate(run.answering):
        confidence = run.answers.confidence[i]
        ece, bins = findings.calibration(confidence, run.answers.correct[i])
        text = f"ECE {100 * ece:.2f} %, mean confidence {100 * confidence.mean():.2f} %"
        diagrams.append(plots.reliability(name, bins, text))
    return diagrams


def agreement(run: Findings) -> Table | None:
    """Tabulate how often two peers predict the same class; None for a single peer."""
    if len(run.titles) < 2:
        return None
    shares = 100 * findings.agreement(run.answers.predicted[:-1])
    rows = [
        [title, *(f"{share:.2f}" for share in row)]
        for title, row in zip(run.titles, shares, strict=True)
    ]
    return Table(["", *map(str, range(len(rows)))], rows)


def looks(run: Findings) -> list[Gallery]:
    """Show Grad-CAM for two images that a kept network got wrong, and two that all got right."""
    wrong = [mistaken(run, label, predicted)[0] for label, predicted, _ in confused_pairs(run)]
    wrong = list(dict.fromkeys(wrong))[: LOOKS // 2]
    right = np.flatnonzero(run.answers.correct.all(axis=0)).tolist()
    views_of, galleries = gradcam.viewer(run.subject), []
    for i in wrong + right[: LOOKS - len(wrong)]:
        index = int(run.answers.positions[i])
        picture = of_test(run.subject, index)
        views = views_of(picture, gradcam.PREDICTED)
        texts, maps = gradcam.captions(run.subject, views), [view.heat[0] for view in views]
        name = f"test image {index}"
        shown = [thumbnail(picture.pixels, "the image", name)]
        for text, heat in zip(texts, maps, strict=True):
            overlay = figures.blend(picture.pixels, heat)
            shown.append(thumbnail(overlay, text, f"{name}: heat map of {text}"))
        buffer = io.BytesIO()
        surfaces = figures.surfaces("", texts, maps, ink=figures.INK)
        surfaces.savefig(buffer, dpi=160, transparent=True)
        below = Thumbnail(data_uri(buffer), f"{name}: the peers' heat maps as surfaces")
        label = run.setup.dataset.class_names[run.answers.labels[i]]
        galleries.append(Gallery(f"{name}, label {label}", shown, below))
    return galleries


def thumbnail(pixels: np.ndarray, text: str, alt: str) -> Thumbnail:
    """Encode an image.

    Args:
      pixels: uint8 [H, W, channels].
      text, alt: see `Thumbnail`.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).save(buffer, "png")
    return Thumbnail(data_uri(buffer), alt, text, sharp=max(pixels.shape) < SMALL)


def data_uri(png: io.BytesIO) -> str:
    """Encode a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
