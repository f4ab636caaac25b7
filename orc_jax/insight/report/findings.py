"""What a run's checkpoint says about the test images; pure functions of arrays but for `find`."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from orc_jax import prepare
from orc_jax.data import batches
from orc_jax.evaluation import evaluation_batches
from orc_jax.insight.inspect import Subject, of_state
from orc_jax.runtime import metrics
from orc_jax.step import compile_steps, evaluation_batch_size

BINS = 15


class Answers(NamedTuple):
    """What the P peers, and after them the ensemble, say of every test image.

    Attributes:
      positions: of the images in the test split.
      labels: y.
      named: the class with the highest probability.
      confidence: that probability.
      loss: cross-entropy, nats.
      top5: whether the label is among the five most probable classes.
    """

    positions: Int[np.ndarray, " N"]
    labels: Int[np.ndarray, " N"]
    named: Int[np.ndarray, "P1 N"]
    confidence: Float[np.ndarray, "P1 N"]
    loss: Float[np.ndarray, "P1 N"]
    top5: Bool[np.ndarray, "P1 N"]

    @property
    def correct(self) -> Bool[np.ndarray, "P1 N"]:
        return self.named == self.labels


class Findings(NamedTuple):
    """All that the page shows of a run.

    Attributes:
      workdir, step: of the checkpoint.
      setup: what the run's config builds.
      records: of `metrics.jsonl`, up to the checkpoint.
      promotions: [P] steps in which each peer was promoted.
      subject: the networks, to look at single images.
      answers: over the test split.
    """

    workdir: Path
    step: int
    setup: Any
    records: list[dict]
    promotions: list[int]
    subject: Subject
    answers: Answers

    @property
    def titles(self) -> list[str]:
        """The peers, as tables and legends name them."""
        return [peer.title for peer in self.subject.peers]

    @property
    def answering(self) -> list[str]:
        """Whose answers there are to show: the peers and, of several, the ensemble."""
        return self.titles + ["ensemble"] * (len(self.titles) > 1)


def find(workdir: str | Path, checkpoint: str, data_dir: str) -> Findings:
    """Restores a run's checkpoint and asks it about every test image; see `prepare.restore`."""
    setup, state, step = prepare.restore(workdir, checkpoint, data_dir=data_dir)
    subject, found = of_state(setup, state), _ask(setup, state.stacks)
    return Findings(
        Path(workdir),
        step,
        # Without its images, of which a page about many runs would hold many copies.
        setup._replace(dataset=setup.dataset._replace(test=None), test_split=None),
        [record for record in metrics.read(workdir) if record["step"] <= step],
        state.promotions.tolist(),
        subject,
        found,
    )


def _ask(setup, stacks) -> Answers:
    size, parts, first = evaluation_batch_size(setup.config, setup.group), [], 0
    _, _, prediction_step = compile_steps(
        setup.config, setup.group, setup.method, streamed=setup.streamed
    )
    # Compiled, so that the images are not made for it.
    labels_of = jax.jit(lambda split, index: batches.evaluation_batch(split, index, size)[1:])
    for split, index in evaluation_batches(setup):
        logits = jax.device_get(prediction_step(stacks, split, index))
        labels, counts = jax.device_get(labels_of(split, index))
        rows = np.flatnonzero(counts)
        parts.append(answers(first + rows, labels[rows], logits[:, rows]))
        first += size
    return Answers(*(np.concatenate(field, axis=-1) for field in zip(*parts, strict=True)))


def answers(positions, labels, logits: Float[np.ndarray, "P B C"]) -> Answers:
    """The answers that logits give; the ensemble's output is the peers' mean softmax output."""
    log_probs = special.log_softmax(logits, axis=-1)
    ensemble = special.logsumexp(log_probs, axis=0, keepdims=True) - np.log(len(logits))
    log_probs = np.concatenate([log_probs, ensemble])
    of_label = np.take_along_axis(log_probs, labels[None, :, None], axis=-1)
    return Answers(
        positions,
        labels,
        log_probs.argmax(axis=-1),
        np.exp(log_probs.max(axis=-1)),
        -of_label[..., 0],
        (log_probs > of_label).sum(axis=-1) < 5,
    )


class Bin(NamedTuple):
    """The answers of a range of confidence: their share, mean confidence and accuracy."""

    share: float
    confidence: float
    accuracy: float


def calibration(
    confidence: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]
) -> tuple[float, list[Bin]]:
    """Expected calibration error and the reliability diagram's bins.

    ECE = Σ_m |B_m|/N · |acc(B_m) − conf(B_m)| over 15 bins of equal width, B_m the answers
    with a confidence in ((m−1)/15, m/15] (Guo et al. 2017, arXiv 1706.04599, equations 1 to 3).

    Returns:
      ECE as a share, and every bin; an empty one is of zeros.
    """
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count, confident, right = (
        np.bincount(place, weights, BINS) for weights in (None, confidence, correct)
    )
    share, some = count / len(place), np.maximum(count, 1)
    bins = [Bin(*map(float, b)) for b in zip(share, confident / some, right / some, strict=True)]
    return sum(b.share * abs(b.accuracy - b.confidence) for b in bins), bins


def confusion(labels, named, num_classes: int) -> Int[np.ndarray, "C C"]:
    """How often an image of class i (row) was called j (column)."""
    pairs = np.bincount(labels * num_classes + named, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def most_confused(counts: Int[np.ndarray, "C C"], at_most: int) -> list[tuple[int, int, int]]:
    """(class, what it was called, how often), the most frequent mistakes first."""
    mistakes = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:at_most]
    pairs = (divmod(int(at), len(counts)) for at in order)
    return [(i, j, int(mistakes[i, j])) for i, j in pairs if mistakes[i, j]]


def agreement(named: Int[np.ndarray, "P N"]) -> Float[np.ndarray, "P P"]:
    """The share of images to which two peers give the same answer, right or wrong."""
    return np.array([[(one == other).mean() for other in named] for one in named])
