"""Plot the records of a run over its epochs."""

from orc_jax import peers
from orc_jax.insight.report import plots
from orc_jax.insight.report.findings import Findings


def curves(run: Findings) -> list[plots.Plot]:
    """Plot the accuracy and loss of every peer over the epochs."""
    panels, config = [], run.setup.config
    kinds = run.setup.method.positions.kinds(config.method, len(config.peers))
    # With validation images, the test images are evaluated once, at the end.
    evaluated = ("val", "Validation") if any("val" in r for r in run.records) else ("test", "Test")
    for split, label in (evaluated, ("train", "Training")):
        records = [record for record in run.records if split in record]
        if not records:
            continue
        epochs = [record["epoch"] for record in records]
        # A frozen teacher has no training loss.
        shown = [i for i, kind in enumerate(kinds) if split != "train" or kind in peers.CHANGING]
        for key, title, unit in (("top1", "top-1 accuracy", "%"), ("loss", "loss", "")):
            series = {run.titles[i]: [record[split][key][i] for record in records] for i in shown}
            colours = list(shown)
            if split != "train" and len(kinds) > 1:
                series["ensemble"] = [record[split]["ensemble"][key] for record in records]
                for name in run.setup.method.ensembles:
                    series[f"{name} ensemble"] = [
                        record[split]["ensembles"][name][key] for record in records
                    ]
                colours += range(len(kinds), len(series))
            dashed = [name for name in series if name not in run.titles]
            panels.append(plots.lines(f"{label} {title}", epochs, series, colours, unit, dashed))
    return panels


def per_peer(run: Findings, key: str) -> dict[str, list[float]]:
    """Map the title of each peer to the values of a training metric over the epochs."""
    epochs = [record["train"][key] for record in run.records]
    return {title: [values[i] for values in epochs] for i, title in enumerate(run.titles)}


def roles(run: Findings) -> list[plots.Plot]:
    """Plot each peer's share of promotions and feedback samples, and the steps it learned in."""
    if not run.records:
        return []
    epochs, panels = [record["epoch"] for record in run.records], []
    for key, title in (
        ("promoted", "Share of promotions"),
        ("asked", "Share of the feedback samples asked for"),
    ):
        if key in run.records[0]["train"]:
            shares = per_peer(run, key)
            nonzero = {name: values for name, values in shares.items() if any(values)}
            colours = [i for i, name in enumerate(shares) if name in nonzero]
            if nonzero:
                panels.append(plots.stacked(title, epochs, nonzero, colours))
    learned = {name: [100 * x for x in xs] for name, xs in per_peer(run, "learned").items()}
    if any(0 < x < 100 for values in learned.values() for x in values):
        title = "Steps in which a peer learned from the loss"
        colours = list(range(len(learned)))
        panels.append(plots.lines(title, epochs, learned, colours, "%", bounds=(0, 100)))
    return panels


def loss_terms(run: Findings) -> list[plots.Plot]:
    """Plot the share of each term in the loss."""
    if not run.records:
        return []
    names = list(run.records[-1]["train"]["term_share"])
    shares = {
        name: [record["train"]["term_share"][name] for record in run.records] for name in names
    }
    epochs = [record["epoch"] for record in run.records]
    return [plots.stacked("Share of the loss", epochs, shares, range(len(shares)))]


def switches(run: Findings) -> list[plots.Plot]:
    """Plot SwitOKD's gap G, its threshold δ, and the share of steps in expert mode."""
    if not run.records:
        return []
    epochs, train = [record["epoch"] for record in run.records], run.records[0]["train"]
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
        plots.lines("Gap and threshold", epochs, gaps | deltas, colours * 2, dashed=list(deltas)),
        plots.lines("Steps in expert mode", epochs, expert, colours, "%", bounds=(0, 100)),
    ]
