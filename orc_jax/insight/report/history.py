"""Gather what the records of a run say, epoch after epoch, as plots."""

from orc_jax.insight.report import plots
from orc_jax.insight.report.findings import Findings


def curves(run: Findings) -> list[plots.Plot]:
    """Plot the accuracy and loss of every peer over the epochs."""
    found, config = [], run.setup.config
    kinds = run.setup.method.positions.kinds(config.method, len(config.peers))
    for split, label in (("test", "Test"), ("train", "Training")):
        records = [record for record in run.records if split in record]
        if not records:
            continue
        at = [record["epoch"] for record in records]
        # A frozen teacher has no loss in training.
        shown = [i for i, kind in enumerate(kinds) if split == "test" or kind != "frozen"]
        for key, title, unit in (("top1", "top-1 accuracy", "%"), ("loss", "loss", "")):
            series = {run.titles[i]: [record[split][key][i] for record in records] for i in shown}
            colours = list(shown)
            if split == "test" and len(kinds) > 1:
                series["ensemble"] = [record[split]["ensemble"][key] for record in records]
                colours.append(len(kinds))
            found.append(
                plots.lines(f"{label} {title}", at, series, colours, unit, dashed=["ensemble"])
            )
    return found


def per_peer(run: Findings, key: str) -> dict[str, list[float]]:
    """Map each peer to its values over the epochs."""
    values = zip(*(record["train"][key] for record in run.records), strict=True)
    return dict(zip(run.titles, values, strict=True))


def roles(run: Findings) -> list[plots.Plot]:
    """Plot who was promoted, who asked for feedback samples and who learned from the loss."""
    if not run.records:
        return []
    at, found = [record["epoch"] for record in run.records], []
    for key, title in (
        ("promoted", "Share of promotions"),
        ("asked", "Share of the feedback samples asked for"),
    ):
        if key in run.records[0]["train"]:
            everyone = per_peer(run, key)
            some = {name: values for name, values in everyone.items() if any(values)}
            colours = [i for i, name in enumerate(everyone) if name in some]
            if some:
                found.append(plots.stacked(title, at, some, colours))
    learned = {name: [100 * x for x in xs] for name, xs in per_peer(run, "learned").items()}
    if any(0 < x < 100 for values in learned.values() for x in values):
        title = "Steps in which it learned from the loss"
        found.append(plots.lines(title, at, learned, range(len(learned)), "%", bounds=(0, 100)))
    return found


def loss_terms(run: Findings) -> list[plots.Plot]:
    """Plot the terms' shares of the whole loss."""
    if not run.records:
        return []
    names = list(run.records[-1]["train"]["term_share"])
    shares = {
        name: [record["train"]["term_share"][name] for record in run.records] for name in names
    }
    at = [record["epoch"] for record in run.records]
    return [plots.stacked("Share of the loss", at, shares, range(len(shares)))]


def switches(run: Findings) -> list[plots.Plot]:
    """Plot SwitOKD's gap G, its δ, and how often the teacher is paused (expert mode)."""
    if not run.records:
        return []
    at, train = [record["epoch"] for record in run.records], run.records[0]["train"]
    pairs = [key.removeprefix("gap/") for key in train if key.startswith("gap/")]
    if not pairs:
        return []

    def over_time(key):
        return [record["train"][key] for record in run.records]

    names = {pair: "teacher {}, student {}".format(*pair.split("_")) for pair in pairs}
    gaps = {f"G, {names[pair]}": over_time(f"gap/{pair}") for pair in pairs}
    deltas = {f"δ, {names[pair]}": over_time(f"delta/{pair}") for pair in pairs}
    expert = {names[pair]: [100 * x for x in over_time(f"expert/{pair}")] for pair in pairs}
    colours = list(range(len(pairs)))
    return [
        plots.lines("Gap and threshold", at, gaps | deltas, colours * 2, dashed=list(deltas)),
        plots.lines("Steps in expert mode", at, expert, colours, "%", bounds=(0, 100)),
    ]
