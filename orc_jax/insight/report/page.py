"""The page: what was found about each run, section by section, as HTML."""

import io
import json
from html import escape

import numpy as np

from orc_jax import config as configs
from orc_jax.insight import figures, gradcam
from orc_jax.insight.inspect import of_test
from orc_jax.insight.report import findings, history, plots
from orc_jax.insight.report.findings import Findings
from orc_jax.insight.report.html import figure, grid, table, thumbnail, uri
from orc_jax.insight.report.style import STYLE

EXAMPLES = 3  # images of a pair of classes
LOOKS = 4  # images that Grad-CAM is shown for
PAIRS = 6  # of classes


def page(runs: list[Findings]) -> str:
    """The whole file."""
    title = "Report: " + ", ".join(str(one.workdir) for one in runs)
    several = overview(runs) if len(runs) > 1 else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{several}"
        f"{''.join(section(i, one) for i, one in enumerate(runs))}</main></body></html>\n"
    )


def overview(runs: list[Findings]) -> str:
    """The runs side by side: what they kept."""
    rows = []
    for i, one in enumerate(runs):
        top1 = 100 * one.answers.correct.mean(axis=1)
        kept = ", ".join(f"{top1[peer]:.2f}" for peer in one.setup.kept)
        link = f'<a href="#run{i}">{escape(str(one.workdir))}</a>'
        rows.append([link, one.setup.config.method.name, epoch(one), kept, f"{top1[-1]:.2f}"])
    head = ["run", "method", "epoch", "top-1 % of the kept networks", "ensemble"]
    return "<h2>Overview</h2>" + table(head, rows, numbers_from=3)


def section(i: int, one: Findings) -> str:
    """Everything about a run."""
    parts = [
        ("Networks", networks(one)),
        ("Configuration", configuration(one)),
        ("Learning curves", history.curves(one)),
        ("Roles", history.roles(one)),
        ("Loss terms", history.loss_terms(one)),
        ("Teacher and student", history.switches(one)),
        ("Confusion", confusion(one)),
        ("Most confused classes", confused(one)),
        ("Calibration", calibration(one)),
        ("Agreement", agreement(one)),
        ("Grad-CAM", looks(one)),
    ]
    content = "".join(f"<h3>{name}</h3>{html}" for name, html in parts if html)
    config = one.setup.config
    about = (
        f"{config.method.name} on {config.data.name}, after epoch {epoch(one)} of {config.epochs}; "
        f"{len(one.answers.labels):,} test images, {one.setup.dataset.num_classes} classes."
    )
    title = escape(str(one.workdir))
    return f'<section id="run{i}"><h2>{title}</h2><p>{escape(about)}</p>{content}</section>'


def epoch(one: Findings) -> str:
    """How far the run was, in epochs."""
    return f"{round(one.step / one.setup.steps_per_epoch, 2):g}"


def networks(one: Findings) -> str:
    """The table of peers."""
    found, setup, rows = one.answers, one.setup, []
    for i, name in enumerate(one.answering):
        ece, _ = findings.calibration(found.confidence[i], found.correct[i])
        rows.append(
            [
                escape(name) + (", kept" if i in setup.kept else ""),
                f"{setup.num_params[i]:,}" if i < len(setup.num_params) else "",
                f"{100 * found.correct[i].mean():.2f}",
                f"{100 * found.top5[i].mean():.2f}",
                f"{found.loss[i].mean():.4f}",
                f"{100 * ece:.2f}",
                f"{100 * one.promotions[i] / max(one.step, 1):.1f}"
                if any(one.promotions) and i < len(one.promotions)
                else "",
            ]
        )
    head = ["network", "parameters", "top-1 %", "top-5 %", "loss", "ECE %", "promoted %"]
    if not any(one.promotions):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return table(head, rows, numbers_from=1)


def configuration(one: Findings) -> str:
    """What is not as by default, and every setting, closed until asked for."""
    config = one.setup.config
    default = configs.default_config(config.method.name)
    default.peers = tuple(configs.peer("") for _ in config.peers)
    settings, usual = (configs.flat(json.loads(configs.to_json(c))) for c in (config, default))

    def shown(items):
        return table(
            ["setting", "value"],
            [[escape(key), escape(json.dumps(value, ensure_ascii=False))] for key, value in items],
            numbers_from=2,
        )

    changed = [(key, value) for key, value in settings.items() if value != usual[key]]
    everything = f"<details><summary>All settings</summary>{shown(settings.items())}</details>"
    return f"<p>What differs from the defaults:</p>{shown(changed)}{everything}"


def confusion(one: Findings) -> str:
    """A matrix a peer."""
    found, classes = one.answers, one.setup.dataset.class_names
    matrices = [
        plots.matrix(name, findings.confusion(found.labels, named, len(classes)), classes)
        for name, named in zip(one.titles, found.named[:-1], strict=True)
    ]
    return "<p>A row is a class; the stronger a cell, the larger its share of the row.</p>" + grid(
        matrices
    )


def confused_pairs(one: Findings) -> list[tuple[int, int, int]]:
    """The most frequent mistakes of the kept networks, as `findings.most_confused`."""
    found, classes = one.answers, one.setup.dataset.num_classes
    counts = sum(findings.confusion(found.labels, found.named[i], classes) for i in one.setup.kept)
    return findings.most_confused(counts, PAIRS)


def mistaken(one: Findings, label: int, named: int) -> list[int]:
    """Places in the answers of images of a class that a kept network called another."""
    found = one.answers
    wrong = (found.named[one.setup.kept] == named).sum(axis=0) * (found.labels == label)
    return np.argsort(-wrong, kind="stable")[: np.count_nonzero(wrong)].tolist()


def confused(one: Findings) -> str:
    """The most frequent mistakes, with images."""
    found, names, groups = one.answers, one.setup.dataset.class_names, []
    for label, named, count in confused_pairs(one):
        shown = []
        for at in mistaken(one, label, named)[:EXAMPLES]:
            who = [i for i in one.setup.kept if found.named[i, at] == named]
            text = f"by {', '.join(map(str, who))}"
            shown.append(thumbnail(pixels(one, at), text, f"test image of {names[label]}, {text}"))
        title = f"{names[label]} called {names[named]}: {count} ×"
        groups.append(figure(title, f'<div class="images">{"".join(shown)}</div>'))
    if not groups:
        return "<p>The kept networks make no mistake on the test images.</p>"
    return "<p>Mistakes of all kept networks together.</p>" + grid(groups)


def calibration(one: Findings) -> str:
    """A reliability diagram for each peer and the ensemble."""
    found, diagrams = one.answers, []
    for i, name in enumerate(one.answering):
        ece, bins = findings.calibration(found.confidence[i], found.correct[i])
        text = f"ECE {100 * ece:.2f} %, mean confidence {100 * found.confidence[i].mean():.2f} %"
        diagrams.append(plots.reliability(name, bins, text))
    return (
        "<p>Accuracy of the answers by their confidence, in 15 bins: on the diagonal both are "
        "equal. The fainter a bar, the fewer answers it has.</p>" + grid(diagrams)
    )


def agreement(one: Findings) -> str:
    """How often two peers give the same answer."""
    names = one.titles
    if len(names) < 2:
        return ""
    shares = 100 * findings.agreement(one.answers.named[:-1])
    rows = [
        [escape(name), *(f"{share:.2f}" for share in row)]
        for name, row in zip(names, shares, strict=True)
    ]
    text = "<p>Test images, in %, to which two peers give the same answer, right or wrong.</p>"
    return text + table(["", *map(str, range(len(names)))], rows, numbers_from=1)


def looks(one: Findings) -> str:
    """Grad-CAM of two images that a kept network got wrong, and two that all got right."""
    wrong = [mistaken(one, label, named)[0] for label, named, _ in confused_pairs(one)]
    wrong = list(dict.fromkeys(wrong))[: LOOKS // 2]
    right = np.flatnonzero(one.answers.correct.all(axis=0)).tolist()
    views, groups = gradcam.viewer(one.subject), []
    for at in wrong + right[: LOOKS - len(wrong)]:
        picture = of_test(one.subject, one.answers.positions[at])
        seen = views(picture, gradcam.PREDICTED)
        texts, heat = gradcam.captions(one.subject, seen), [view.heat[0] for view in seen]
        name = f"test image {one.answers.positions[at]}"
        tiles = [thumbnail(picture.pixels, "the image", name)]
        for text, one_heat in zip(texts, heat, strict=True):
            over = figures.blend(picture.pixels, one_heat)
            tiles.append(thumbnail(over, text, f"{name}: heat map of {text}"))
        buffer = io.BytesIO()
        figures.surfaces("", texts, heat).savefig(buffer, dpi=160)
        alt = escape(f"{name}: the peers' heat maps as surfaces", quote=True)
        surface = f'<img class="surface" src="{uri(buffer.getvalue())}" alt="{alt}">'
        label = one.setup.dataset.class_names[one.answers.labels[at]]
        tiles = f'<div class="images">{"".join(tiles)}</div>'
        groups.append(figure(f"{name}, label {label}", tiles, surface))
    return grid(groups, "wide")


def pixels(one: Findings, at: int) -> np.ndarray:
    """The test image at a place of the answers."""
    return of_test(one.subject, one.answers.positions[at]).pixels
