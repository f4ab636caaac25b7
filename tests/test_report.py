"""The report: its numbers, its plots, and the page in a browser."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import run_here

import orc_jax
from configs import digits
from orc_jax.errors import UserError
from orc_jax.insight import figures, inspect
from orc_jax.insight.report import findings, history, page, plots, writing
from orc_jax.insight.report.writing import report
from orc_jax.runtime import metrics

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Not in CI: there a browser that is missing is a failure.
in_a_browser = pytest.mark.skipif(
    not CHROMIUM and "CI" not in os.environ, reason="needs chromium (apt-get install chromium)"
)


def test_calibration_of_a_case_computed_by_hand():
    """Five answers in the bins (7/15, 8/15], (13/15, 14/15] and (14/15, 1]."""
    confidence = np.array([0.5, 0.52, 0.9, 1.0, 0.96])
    correct = np.array([True, False, False, True, True])
    ece, bins = findings.calibration(confidence, correct)
    # |0.5 − 0.51| · 2/5 + |0 − 0.9| · 1/5 + |1 − 0.98| · 2/5
    assert ece == pytest.approx(0.004 + 0.18 + 0.008)
    assert bins[7] == pytest.approx((0.4, 0.51, 0.5))
    assert bins[13] == pytest.approx((0.2, 0.9, 0.0))
    assert bins[14] == pytest.approx((0.4, 0.98, 1.0))
    assert all(b == (0, 0, 0) for i, b in enumerate(bins) if i not in (7, 13, 14))


def test_confusion_and_agreement_by_hand():
    labels, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 2, 2, 1, 1, 2])
    counts = findings.confusion(labels, predicted, 3)
    np.testing.assert_array_equal(counts, [[1, 0, 2], [0, 1, 0], [0, 1, 1]])
    assert findings.most_confused(counts, 9) == [(0, 2, 2), (2, 1, 1)]
    assert findings.most_confused(counts, 1) == [(0, 2, 2)]
    shares = findings.agreement(np.stack([labels, predicted]))
    np.testing.assert_allclose(shares, [[1, 0.5], [0.5, 1]])


def test_answers_of_peers_and_ensemble_by_hand():
    """Softmax outputs (0.8, 0.2) and (0.1, 0.9) have the mean (0.45, 0.55)."""
    logits = np.log([[[0.8, 0.2]], [[0.1, 0.9]]])
    found = findings.answers(np.array([0]), np.array([0]), logits)
    assert found.predicted[:, 0].tolist() == [0, 1, 1]
    np.testing.assert_allclose(found.confidence[:, 0], [0.8, 0.9, 0.55])
    np.testing.assert_allclose(found.loss[:, 0], -np.log([0.8, 0.1, 0.45]))
    assert found.top5.all()
    # Far behind the others, where softmax's output is 0.
    logits = np.array([[[150.0, 0, 10, 10, 10, 10]]], np.float32)
    found = findings.answers(np.array([0]), np.array([1]), logits)
    np.testing.assert_allclose(found.loss, 150)
    assert not found.top5.any()


def draw(figure) -> str:
    return writing.environment().get_template(figure.template).render(figure=figure)


def test_plots_of_what_is_rare():
    """One epoch, values that are not finite, a thousand classes, names with HTML in them."""
    plot = draw(plots.lines("a < b", [3], {"<b>": [1.0], "c": [float("nan")]}, [0, 1]))
    assert "nan" not in plot and "<b>" not in plot and "&lt;b&gt;" in plot
    assert plot.count("<circle") == 1
    plot = draw(plots.stacked("shares", [1], {"none": [0.0]}, [0]))
    assert "nan" not in plot
    nobody = {"promoted": [0.0, 0.0], "asked": [0.0, 1.0], "learned": [1.0, 1.0]}
    peers = [inspect.Peer(title, None, None, None) for title in "ab"]
    run = findings.Findings(
        workdir=Path(),
        step=1,
        setup=None,
        records=[{"epoch": 1, "train": nobody}],
        promotions=[0, 0],
        subject=inspect.Subject(peers, None, ()),
        answers=None,
    )
    titles = [plot.title for plot in history.roles(run)]
    assert titles == ["Share of the feedback samples asked for"]
    assert len(draw(plots.matrix("many", np.eye(1000, dtype=int), ["x"] * 1000))) < 30_000


def test_ticks_are_round_numbers_within_the_axis():
    assert plots.Scale(0, 100, 0, 1).ticks == [0, 20, 40, 60, 80, 100]
    assert plots.Scale(0.31, 0.52, 0, 1).ticks == [0.35, 0.4, 0.45, 0.5]
    assert plots.Scale(1, 3, 0, 1, least=1).ticks == [1, 2, 3]
    assert plots.Scale(5, 5, 0, 1).ticks == [5]


@pytest.mark.parametrize(
    "colours, background", [(figures.COLOURS, "#f5f6f8"), (figures.COLOURS_ON_DARK, "#1d2229")]
)
def test_ten_colours_differ_and_stand_out(colours, background):
    """Also to the colour-blind: simulated as by Machado et al. 2009, severity 1."""

    def linear(colour):
        levels = np.array(list(bytes.fromhex(colour[1:]))) / 255
        return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)

    def oklab(rgb):
        lms = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
        lab = [[0.2105, 0.7936, -0.0041], [1.978, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
        return np.array(lab) @ np.cbrt(np.array(lms) @ np.clip(rgb, 0, 1))

    normal = np.eye(3)
    protan = [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0993], [-0.0039, -0.0481, 1.0520]]
    deutan = [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9690]]
    assert len(colours) == 10
    for vision in (normal, protan, deutan):
        seen = [oklab(np.array(vision) @ linear(colour)) for colour in colours]
        distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
        assert min(distances) >= 0.1
    for colour in colours:
        levels = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] for c in (colour, background))
        assert (levels[1] + 0.05) / (levels[0] + 0.05) >= 3  # WCAG's contrast of graphics


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_networks):
    """Short runs by ORC and SwitOKD."""
    workdirs = []
    for preset in ("orc:pixels_wide,pixels,pixels", "switokd:pixels_wide,pixels"):
        config = digits.get_config(preset)
        config.epochs, config.batch_size = 2, 128
        workdirs.append(str(tmp_path_factory.mktemp("report") / preset.split(":")[0]))
        orc_jax.train(config, workdirs[-1])
    return workdirs


@pytest.fixture(scope="module")
def html(runs, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    report(runs, file)
    return file


def test_answers_are_what_training_logged(runs):
    found = findings.find(runs[0], "last", "")
    test = metrics.read(runs[0])[-1]["test"]
    np.testing.assert_array_equal(found.answers.positions, np.arange(360))
    for key, values in (
        ("top1", 100 * found.answers.correct),
        ("top5", 100 * found.answers.top5),
        ("loss", found.answers.loss),
    ):
        logged = [*test[key], test["ensemble"][key]]
        np.testing.assert_allclose(values.mean(axis=1), logged, rtol=1e-4)


def test_the_page_has_everything_and_needs_nothing(html):
    text = html.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "url(" not in text
    titles = re.findall(r"<(?:h3|figcaption)>([^<]*)<", text)
    for title in (
        *("Configuration", "Test top-1 accuracy (%)", "Training loss", "Share of promotions (%)"),
        *("Share of the loss (%)", "Gap and threshold", "Steps in expert mode (%)", "Confusion"),
        *("Most confused classes", "Calibration", "Agreement", "Grad-CAM"),
    ):
        assert title in titles
    assert text.count("<td>0 pixels_wide, pivot teacher</td>") == 2
    assert "<tr><td>epochs</td><td>2</td></tr>" in text


class Outline(HTMLParser):
    """The tags and attribute names of a page, and apart from them its texts and values."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, [name for name, _ in attrs]))
        self.texts += [value or "" for _, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def test_no_name_can_add_markup(runs):
    """Whatever work directories, data sets, classes, networks and loss terms are called."""
    run = findings.find(runs[0], "last", "")

    def rendered(suffix):
        config = run.setup.config.copy_and_resolve_references()
        config.data.name += suffix
        classes = tuple(f"{i}{suffix}" for i in range(10))
        records = json.loads(json.dumps(run.records))
        for record in records:
            share = record["train"]["term_share"]
            record["train"]["term_share"] = {name + suffix: x for name, x in share.items()}
        peers = [peer._replace(title=f"{i}{suffix}") for i, peer in enumerate(run.subject.peers)]
        dataset = run.setup.dataset._replace(class_names=classes)
        renamed = run._replace(
            workdir=Path(f"runs{suffix}"),
            setup=run.setup._replace(dataset=dataset, config=config),
            records=records,
            subject=run.subject._replace(peers=peers, class_names=classes),
        )
        context = page.context([renamed])
        context["runs"] *= 2  # so that there is an overview
        return writing.environment().get_template("page.html").render(context)

    harmless = " of a harmless name"
    hostile = """<script>alert(1)</script>&"'</style></title>"""
    expected, attacked = Outline(rendered(harmless)), Outline(rendered(hostile))
    assert attacked.tags == expected.tags
    hit = [
        text.replace('\\"', '"')  # as JSON, the configuration has it so
        for place, text in zip(expected.texts, attacked.texts, strict=True)
        if harmless in place
    ]
    assert len(hit) > 100 and all(hostile in text for text in hit)


def test_all_markup_is_in_templates():
    """Where every value is escaped, which nothing switches off."""
    folder = Path(writing.__file__).parent
    for file in folder.glob("*.py"):
        assert not re.search(r"<\w|</|\bescape\(|Markup", file.read_text()), file.name
    for file in folder.glob("templates/*"):
        assert not re.search(r"\bsafe\b|autoescape", file.read_text()), file.name


# Looks at the page as a reader does, and leaves what it saw in the page.
PROBE = """<script>addEventListener("load", () => {
  const box = e => e.getBoundingClientRect();
  const inside = t => {
    const [a, b] = [box(t), box(t.ownerSVGElement)];
    return a.left >= b.left - 1 && a.right <= b.right + 1
      && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
  };
  const texts = [...document.querySelectorAll("svg text")];
  const images = [...document.images];
  const style = getComputedStyle(document.body);
  const seen = {
    width: innerWidth,
    content: document.documentElement.scrollWidth,
    images: images.length,
    broken: images.filter(i => !i.complete || !i.naturalWidth || !box(i).width).length,
    without_alt: images.filter(i => !i.alt).length,
    plots: document.querySelectorAll("svg").length,
    empty: [...document.querySelectorAll("svg")].filter(s => box(s).height < 100).length,
    cut: texts.filter(t => !inside(t)).map(t => t.textContent),
    smallest: Math.min(...texts.map(t => box(t).height).filter(h => h)),
    requests: performance.getEntriesByType("resource").map(r => r.name.slice(0, 40)),
    colours: [style.color, style.backgroundColor],
  };
  const pre = document.createElement("pre");
  pre.id = "probe";
  pre.textContent = JSON.stringify(seen);
  parent.document.body.append(pre);
})</script>"""


def look(html, tmp_path, width: int, dark: bool = False):
    """Opens a page in a browser: (what the probe saw, what the console says)."""
    # In a frame, because a window has a least width.
    page = escape(html.read_text().replace("</body>", PROBE + "</body>"), quote=True)
    frame = f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>'
    copy = tmp_path / "framed.html"
    copy.write_text(
        '<!doctype html><html style="color-scheme: light dark"><head><meta charset="utf-8"></head>'
        f"<body>{frame}</body></html>"
    )
    result = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"),
            *(
                f"--window-size={width},900",
                f"--blink-settings=preferredColorScheme={int(not dark)}",
            ),
            *("--dump-dom", copy.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    seen = re.search(r'<pre id="probe">(.*?)</pre>', result.stdout)
    assert seen, result.stderr
    console = [line for line in result.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(unescape(seen[1])), console


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(…)" (WCAG 2.2)."""
    levels = np.array([int(x) / 255 for x in re.findall(r"\d+", colour)[:3]])
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@in_a_browser
@pytest.mark.parametrize("width, dark", [(400, False), (1400, True)])
def test_in_a_browser(html, tmp_path, width, dark):
    seen, console = look(html, tmp_path, width, dark)
    assert console == []
    assert seen["width"] == width and seen["content"] <= width
    assert seen["images"] >= 20 and seen["broken"] == seen["without_alt"] == 0
    assert seen["plots"] >= 20 and seen["empty"] == 0
    assert seen["cut"] == [] and seen["smallest"] >= 11
    assert all(name.startswith("data:") for name in seen["requests"])
    text, background = map(luminance, seen["colours"])
    assert (background < 0.1) if dark else (background > 0.9)
    lighter, darker = max(text, background), min(text, background)
    assert (lighter + 0.05) / (darker + 0.05) > 7  # WCAG's contrast, level AAA


@in_a_browser
def test_the_browser_sees_what_is_wrong(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<html><body><img src="data:image/png;base64,AAAA"><div style="width:600px">wide</div>'
        '<svg viewBox="0 0 300 200" width="300"><text x="290" y="50">cut off</text>'
        '<path d="Mnan,1"/></svg></body></html>'
    )
    seen, console = look(bad, tmp_path, 400)
    assert seen["broken"] == seen["without_alt"] == 1
    assert seen["content"] > 400 and seen["cut"] == ["cut off"]
    assert len(console) == 1 and "path" in console[0]


def test_a_run_without_a_finished_epoch_has_a_page_too(runs, tmp_path):
    records = tmp_path / "run"
    shutil.copytree(runs[1], records)
    (records / "metrics.jsonl").unlink()
    report([str(records)], tmp_path / "report.html")
    assert "No epoch is finished yet" in (tmp_path / "report.html").read_text()
    with pytest.raises(UserError, match=r"cannot write .*: No such file or directory"):
        report([str(records)], tmp_path / "absent" / "report.html")


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    writing.environment.cache_clear()
    with pytest.raises(UserError, match=r"the report needs Jinja2: pip install -e '.\[plots\]'"):
        report([str(tmp_path)], tmp_path / "report.html")


def test_mistakes_get_one_line(tmp_path):
    for args, message in (
        ((), "error: RUN is required\n"),
        ((str(tmp_path), "other"), f"error: {tmp_path} is not a work directory"),
    ):
        result = run_here("report", *args)
        assert result.returncode == 1
        assert result.stderr.startswith(message) and result.stderr.count("\n") == 1
