"""A group trained in PyTorch, in a loop over its networks as in published programs.

It has what these programs have in common: `nn.Module`s, a DataLoader, `torch.optim` and one
backward pass for each network. Where they differ it has the faster variant: images are padded once
and not at every access, a network runs once on a batch for both ranking and loss, feedback samples
are drawn without a Python loop, and the optimizer is the fused one.
"""

import random
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.torch_networks import create
from orc_jax import optimizers
from orc_jax.methods.dcm import FLOOR


def kd(student, teacher, temperature: float, floor: float = 0.0):
    """Compute KD_T(s, t) = T² · mean_b KL( softmax(t/T) ‖ softmax(s/T) ) with a constant teacher.

    Args:
      student: s, logits [B, C].
      teacher: t, logits [B, C].
      temperature: T.
      floor: added to the student's probabilities, as in DCM's code.
    """
    probabilities = F.softmax(teacher.detach() / temperature, dim=1)
    if floor:
        log_student = (F.softmax(student / temperature, dim=1) + floor).log()
    else:
        log_student = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, probabilities, reduction="batchmean")


def orc_loss(logits, labels, teachers: list, beta: float, temperature: float):
    """Compute (1−β) CE + β Σ_teachers KD_T of a student, for ORC's private and group teaching."""
    distillation = sum(kd(logits, teacher, temperature) for teacher in teachers)
    return (1 - beta) * F.cross_entropy(logits, labels) + beta * distillation


def dcm_loss(heads, labels, others: list, temperature: float):
    """Compute Σ_heads CE + Σ KD_T from every head of the other networks.

    Args:
      heads: logits [3, B, C] of a network.
      labels: [B].
      others: constant logits [3, B, C] of the other networks.
      temperature: T.
    """
    teachers = [head for other in others for head in other]
    cross_entropy = sum(F.cross_entropy(head, labels) for head in heads)
    return cross_entropy + sum(kd(s, t, temperature, FLOOR) for s in heads for t in teachers)


def draw_feedback(cross_entropy, wrong):
    """Draw ORC's feedback samples.

    For each sample a student is drawn by the softmax of the mean cross-entropies, and then one of
    the images that it got wrong. If no student got any wrong, the images are taken in the order of
    their loss, from the highest down.

    Args:
      cross_entropy: of the students, [S, B].
      wrong: whether a student's answer is wrong, [S, B].

    Returns:
      Positions [B] in the batch.
    """
    has_errors = wrong.any(dim=1)
    if not has_errors.any():
        return cross_entropy.sum(dim=0).argsort(descending=True)
    share = cross_entropy.mean(dim=1).masked_fill(~has_errors, -torch.inf).softmax(dim=0)
    student = torch.multinomial(share, wrong.shape[1], replacement=True)
    return torch.multinomial(wrong[student].float(), 1).squeeze(1)


class Group:
    """The networks of a config with their optimizers, trained by ORC or DCM.

    Of ORC it has the variant with a pivot and default settings.

    Args:
      config: the whole config.
      classes: number of classes, C.
      channels: number of channels of the images.
      device: "cpu" or "cuda".
      layout: memory format of images and weights.
      compiled: whether networks and losses go through `torch.compile`.
    """

    def __init__(self, config, classes: int, channels: int, device: str, layout, compiled: bool):
        self.method, self.device, self.layout = config.method, device, layout
        self.autocast = config.precision == "bfloat16"
        self.networks = [
            create(peer.model, classes, channels).to(device, memory_format=layout)
            for peer in config.peers
        ]
        self.optimizers = []
        for network, peer in zip(self.networks, config.peers, strict=True):
            settings = optimizers.settings(config, peer)
            self.optimizers.append(
                torch.optim.SGD(
                    network.parameters(),
                    lr=settings.learning_rate,
                    momentum=settings.momentum,
                    nesterov=settings.nesterov,
                    weight_decay=settings.weight_decay,
                    fused=True,
                )
            )

        def compile(function):
            return torch.compile(function, dynamic=False) if compiled else function

        self.compiled_networks = [compile(network) for network in self.networks]
        self.orc_loss, self.dcm_loss = compile(orc_loss), compile(dcm_loss)

    def load(self, weights: list[dict[str, np.ndarray]]) -> None:
        """Load the weights of each network, by the names that PyTorch has for them."""
        for network, tensors in zip(self.networks, weights, strict=True):
            tensors = {name: torch.tensor(value) for name, value in tensors.items()}
            network.load_state_dict(network.state_dict() | tensors)

    @contextmanager
    def exactly(self, rates: list[float]):
        """Run the steps in this context in float32 and with other learning rates.

        Args:
          rates: learning rate of each network.
        """
        autocast, self.autocast = self.autocast, False
        previous = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self._set_rates(rates)
        yield
        self._set_rates(previous)
        self.autocast = autocast

    def _set_rates(self, rates):
        for optimizer, rate in zip(self.optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate

    def step(self, images, labels, draw: Callable | None = None):
        """Run a training step of the group on a batch from the DataLoader.

        Args:
          images: [B, channels, H, W] float32.
          labels: [B].
          draw: (students' cross-entropy, wrong), both [S, B] → (feedback samples [B], λ), for
            ORC; None: draw them at random.

        Returns:
          The loss of each network, [P].
        """
        images = images.to(self.device, memory_format=self.layout, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        step = {"orc": self._orc, "dcm": self._dcm}[self.method.name]
        return torch.stack(step(images, labels, draw or self._draw))

    def _forward(self, peer, images):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            return self.compiled_networks[peer](images).float()

    def _learn(self, peer, loss):
        self.optimizers[peer].zero_grad()
        loss.backward()
        self.optimizers[peer].step()
        return loss.detach()

    def _draw(self, cross_entropy, wrong):
        alpha = self.method.mixup_alpha
        return draw_feedback(cross_entropy, wrong), random.betavariate(alpha, alpha)

    def _orc(self, images, labels, draw):
        pivot, students = self.method.pivot, list(range(len(self.networks)))
        students.remove(pivot)
        logits = {i: self._forward(i, images) for i in students}
        with torch.no_grad():
            stacked = torch.stack([logits[i] for i in students])
            cross_entropy = F.cross_entropy(
                stacked.flatten(0, 1), labels.repeat(len(students)), reduction="none"
            ).view(stacked.shape[:2])
            ranking = cross_entropy.mean(dim=1).argsort().tolist()
            promoted = [students[i] for i in ranking[: self.method.num_temporary]]
            feedback, lam = draw(cross_entropy, stacked.argmax(dim=2) != labels)

        mixed = lam * images + (1 - lam) * images[feedback]
        on_mixed = self._forward(pivot, mixed)
        loss = lam * F.cross_entropy(on_mixed, labels)
        loss = loss + (1 - lam) * F.cross_entropy(on_mixed, labels[feedback])
        losses = {pivot: self._learn(pivot, loss)}
        with torch.no_grad():
            teacher = self._forward(pivot, images)

        beta, temperature = self.method.beta, self.method.temperature
        temporary = []
        for i in promoted:  # taught before they teach
            loss = self.orc_loss(logits[i], labels, [teacher], beta, temperature)
            losses[i] = self._learn(i, loss)
            with torch.no_grad():
                temporary.append(self._forward(i, images))
        for i in students:
            if i not in promoted:
                teachers = [teacher, *temporary]
                loss = self.orc_loss(logits[i], labels, teachers, beta, temperature)
                losses[i] = self._learn(i, loss)
        return [losses[i] for i in range(len(self.networks))]

    def _dcm(self, images, labels, draw):
        heads = [self._forward(i, images) for i in range(len(self.networks))]
        constant, losses = [head.detach() for head in heads], []
        for i, own in enumerate(heads):
            others = constant[:i] + constant[i + 1 :]
            loss = self.dcm_loss(own, labels, others, self.method.temperature)
            losses.append(self._learn(i, loss))
        return losses


class Images(Dataset):
    """Padded, cropped, flipped and normalised images, [channels, H, W] float32, with labels.

    Args:
      images: [N, H, W, channels] uint8.
      labels: [N].
      mean: mean of pixel/255, [channels].
      std: standard deviation of pixel/255, [channels].
      data: `config.data`.
    """

    def __init__(self, images, labels, mean, std, data):
        self.size, self.pad, self.flip = images.shape[1:3], data.pad, data.flip
        mode = "constant" if data.pad_mode == "zero" else data.pad_mode
        self.images = np.pad(images, ((0, 0), (data.pad,) * 2, (data.pad,) * 2, (0, 0)), mode)
        self.labels = labels.tolist()
        self.scale, self.shift = 1 / (255 * std), mean / std

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        top, left = (random.randint(0, 2 * self.pad) for _ in range(2))
        image = self.images[i, top : top + self.size[0], left : left + self.size[1]]
        if self.flip and random.random() < 0.5:
            image = image[:, ::-1]
        image = image.astype(np.float32) * self.scale - self.shift
        return image.transpose(2, 0, 1), self.labels[i]


def loader(images: Images, batch_size: int, workers: int, device: str) -> DataLoader:
    """Return a DataLoader of the shuffled batches of an epoch."""
    return DataLoader(
        images,
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device == "cuda",
        # The default, fork, is unsafe because JAX has threads in this process.
        multiprocessing_context="spawn" if workers else None,
    )
