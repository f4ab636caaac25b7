"""A group trained in PyTorch, in a loop over its networks as in published programs.

It has what these programs have in common: `nn.Module`s, a DataLoader, `torch.optim` and one
backward pass for each network. Where they differ it has the faster variant: images are padded once
and not at every access, a network runs once on a batch for both ranking and loss, feedback samples
are drawn without a Python loop, and the optimizer is the fused one.
"""

import random
import re
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from orc_jax import optimizers
from orc_jax.methods.dcm import FLOOR


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if inputs != outputs:
            shortcut = _conv(inputs, outputs, stride, kernel=1)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x), inplace=True)


class ResNet(nn.Module):
    """CIFAR's ResNet of depth 6n + 2 (He et al. 2016): [B, channels, H, W] → [B, C]."""

    def __init__(self, depth: int, classes: int, channels: int):
        super().__init__()
        count = (depth - 2) // 6
        self.conv1, self.bn1 = _conv(channels, 16), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*_blocks(Block, 16, 16, 1, count))
        self.layer2 = nn.Sequential(*_blocks(Block, 16, 32, 2, count))
        self.layer3 = nn.Sequential(*_blocks(Block, 32, 64, 2, count))
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class WideBlock(nn.Module):
    """Norm, activation and convolution, twice; the projection sees the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs)
        self.convShortcut = None
        if inputs != outputs:
            self.convShortcut = _conv(inputs, outputs, stride, kernel=1)

    def forward(self, x):
        activated = F.relu(self.bn1(x), inplace=True)
        y = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        return y + (self.convShortcut(activated) if self.convShortcut else x)


class WideStage(nn.Module):
    """Consecutive blocks of one width: [B, inputs, H, W] → [B, outputs, H/stride, W/stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, count: int):
        super().__init__()
        self.layer = nn.Sequential(*_blocks(WideBlock, inputs, outputs, stride, count))

    def forward(self, x):
        return self.layer(x)


class WideTail(nn.Module):
    """Stages, norm and classifier: [B, inputs, H, W] → logits [B, C] and the output of each stage.

    Args:
      inputs: number of channels.
      plan: (channels, stride, blocks) of each stage.
      classes: number of classes, C.
    """

    def __init__(self, inputs: int, plan: list[tuple[int, int, int]], classes: int):
        super().__init__()
        self.names = [f"block{i + 1}" for i in range(len(plan))]
        for name, (outputs, stride, count) in zip(self.names, plan, strict=True):
            setattr(self, name, WideStage(inputs, outputs, stride, count))
            inputs = outputs
        self.bn1, self.fc = nn.BatchNorm2d(inputs), nn.Linear(inputs, classes)

    def forward(self, x):
        features = []
        for name in self.names:
            x = getattr(self, name)(x)
            features.append(x)
        x = F.relu(self.bn1(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1)), features


class WideResNet(WideTail):
    """WRN-depth-width with DCM's two heads: [B, channels, H, W] → [3, B, C], its own head last."""

    def __init__(self, depth: int, width: int, classes: int, channels: int):
        count, width = (depth - 4) // 6, 16 * width
        plan = [(width, 1, count), (2 * width, 2, count), (4 * width, 2, count)]
        super().__init__(16, plan, classes)
        self.conv1 = _conv(channels, 16)
        half = (4 * width, 2, max(1, count // 2))
        self.auxiliary_0 = WideTail(width, [plan[1], half], classes)
        self.auxiliary_1 = WideTail(2 * width, [(8 * width, 2, count)], classes)

    def forward(self, x):
        logits, (first, second, _) = super().forward(self.conv1(x))
        return torch.stack([self.auxiliary_0(first)[0], self.auxiliary_1(second)[0], logits])


def _conv(inputs, outputs, stride=1, kernel=3):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _blocks(block, inputs, outputs, stride, count):
    return [block(inputs, outputs, stride), *(block(outputs, outputs, 1) for _ in range(count - 1))]


def create(name: str, classes: int, channels: int) -> nn.Module:
    """Create a network by its name in orc_jax: resnetDEPTH, or wrn_DEPTH_WIDTH with DCM's heads.

    Args:
      name: name of the network.
      classes: number of classes, C.
      channels: number of channels of the images.
    """
    kind, *numbers = re.fullmatch(r"(resnet|wrn)_?(\d+)(?:_(\d+))?", name).groups()
    numbers = [int(number) for number in numbers if number]
    return {"resnet": ResNet, "wrn": WideResNet}[kind](*numbers, classes, channels)


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

        temporary = [logits[i].detach() for i in promoted]
        for i in students:
            teachers = [teacher] if i in promoted else [teacher, *temporary]
            beta, temperature = self.method.beta, self.method.temperature
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
