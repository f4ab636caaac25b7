"""The networks of the PyTorch program: CIFAR's ResNets, and wide ResNets with DCM's heads."""

import re

import torch
import torch.nn.functional as F
from torch import nn


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
