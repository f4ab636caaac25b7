"""Predictions of a checkpoint for the test images, and statistics of them."""

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

BINS = 15  # of confidence


class Answers(NamedTuple):
    """Predictions for N test images by the P peers, followed by the ensemble (P1 = P + 1).

    Attributes:
      positions: indices of the images in the test split.
      labels: classes of the images.
      predicted: the most probable class.
      confidence: the probability of that class.
      loss: cross-entropy in nats.
      top5: whether the label is among the five most probable classes.
    """

    positions: Int[np.ndarray, " N"]
    labels: Int[np.ndarray, " N"]
    predicted: Int[np.ndarray, "P1 N"]
    confidence: Float[np.ndarray, "P1 N"]
    loss: Float[np.ndarray, "P1 N"]
    top5: Bool[np.ndarray, "P1 N"]

    @property
    def correct(self) -> Bool[np.ndarray, "P1 N"]:
        """Whether the most probable class is the label."""
        return self.predicted == self.labels


class Findings(NamedTuple):
    """Everything that the page shows about a run.

    Attributes:
      workdir: work directory of the run.
      step: of the checkpoint.
      setup: `prepare.Setup` of the run, without images.
      records: of `metrics.jsonl`, up to the checkpoint.
      promotions: [P], number of steps in which each peer was promoted.
      subject: the networks, for figures of single images.
      answers: predictions for the test split.
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
        """The titles of the peers in tables and legends."""
        return [peer.title for peer in self.subject.peers]

    @property
    def answering(self) -> list[str]:
        """The titles of the peers and, if there are several, of the ensemble."""
        return self.titles + ["ensemble"] * (len(self.titles) > 1)


def find(workdir: str | Path, checkpoint: str, data_dir: str) -> Findings:
    """Restore a checkpoint of a run and compute its predictions for the test images.

    The arguments are those of `prepare.restore`.
    """
    setup, state, step = prepare.restore(workdir, checkpoint, data_dir=data_dir)
    nothing: Any = None
    return Findings(
        workdir=Path(workdir),
        step=step,
        # Without the images on the devices, of which a page about many runs would hold many.
        setup=setup._replace(test_split=nothing),
        records=[record for record in metrics.read(workdir) if record["step"] <= step],
        promotions=state.promotions.tolist(),
        subject=of_state(setup, state),
        answers=_predict(setup, state.stacks),
    )


def _predict(setup, stacks) -> Answers:
    size, parts, first = evaluation_batch_size(setup.config, setup.group), [], 0
    _, _, prediction_step = compile_steps(
        setup.config, setup.group, setup.method, streamed=setup.streamed
    )
    # Compiled, so that XLA removes the computation of the images.
    labels_of = jax.jit(lambda split, index: batches.evaluation_batch(split, index, size)[1:])
    for split, index in evaluation_batches(setup, setup.test_split):
        logits = jax.device_get(prediction_step(stacks, split, index))
        labels, counts = jax.device_get(labels_of(split, index))
        rows = np.flatnonzero(counts)
        parts.append(answers(first + rows, labels[rows], logits[:, rows]))
        first += size
    return Answers(*(np.concatenate(field, axis=-1) for field in zip(*parts, strict=True)))


def answers(positions, labels, logits: Float[np.ndarray, "P B C"]) -> Answers:
    """Compute the predictions of the peers and the ensemble, the mean of their softmax outputs.

    Args:
      positions: [B], see `Answers`.
      labels: [B].
      logits: of the peers.
    """
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
    """The predictions in a range of confidence.

    Attributes:
      share: their share of all predictions.
      confidence: their mean confidence.
      accuracy: the share of them that is correct.
    """

    share: float
    confidence: float
    accuracy: float


def calibration(
    confidence: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]
) -> tuple[float, list[Bin]]:
    """Compute the expected calibration error and the bins of the reliability diagram.

    ECE = Σ_m |B_m|/N · |acc(B_m) − conf(B_m)| over 15 bins of equal width, where B_m are the
    predictions with a confidence in ((m−1)/15, m/15] (Guo et al. 2017, arXiv 1706.04599,
    equations 1 to 3).

    Args:
      confidence: the probability of the predicted class.
      correct: whether that class is the label.

    Returns:
      The ECE, 0 to 1, and the bins; an empty bin consists of zeros.
    """
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count, confident, right = (
        np.bincount(place, weights, BINS) for weights in (None, confidence, correct)
    )
    share, divisor = count / len(place), np.maximum(count, 1)
    columns = zip(share, confident / divisor, right / divisor, strict=True)
    bins = [Bin(*map(float, column)) for column in columns]
    return sum(b.share * abs(b.accuracy - b.confidence) for b in bins), bins


def confusion(labels, predicted, num_classes: int) -> Int[np.ndarray, "C C"]:
    """Count how often class j (column) was predicted for an image of class i (row).

    Args:
      labels, predicted: [N].
      num_classes: C.
    """
    pairs = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def most_confused(counts: Int[np.ndarray, "C C"], at_most: int) -> list[tuple[int, int, int]]:
    """Find the most frequent mistakes.

    Args:
      counts: see `confusion`.
      at_most: the largest number of them.

    Returns:
      (class, predicted class, count), the most frequent first.
    """
    mistakes = counts - np.diag(np.diag(counts))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:at_most]
    pairs = (divmod(int(cell), len(counts)) for cell in order)
    return [(i, j, int(mistakes[i, j])) for i, j in pairs if mistakes[i, j]]


def agreement(predicted: Int[np.ndarray, "P N"]) -> Float[np.ndarray, "P P"]:
    """Compute the share of images for which two peers predict the same class, right or wrong."""
    return (predicted[:, None] == predicted[None]).mean(axis=2)
