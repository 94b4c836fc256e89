"""MiDaS v2.1 large and its loss written in PyTorch for comparison: module names of the official weights, any size.

Written from the paper and from the layer names, with the ReLU of the residual units in place as in the official
network. Dependencies: torch alone.
"""

import torch
from torch import nn
from torch.nn.functional import interpolate


class Bottleneck(nn.Module):
    def __init__(self, inputs, planes, stride, groups, width_per_group):
        super().__init__()
        width = planes * width_per_group // 64 * groups
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != planes * 4:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, planes * 4, 1, stride, bias=False), nn.BatchNorm2d(planes * 4)
            )

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + identity)


class ResidualConvUnit(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(x)
        y = self.conv1(y)
        y = self.relu(y)
        y = self.conv2(y)
        return y + x


class Fusion(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.resConfUnit1 = ResidualConvUnit(features)
        self.resConfUnit2 = ResidualConvUnit(features)

    def forward(self, x, skip=None):
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        return interpolate(self.resConfUnit2(x), scale_factor=2, mode="bilinear", align_corners=True)


class TorchMidas(nn.Module):
    def __init__(self, layers=(3, 4, 23, 3), groups=32, width_per_group=8, in_channels=64, features=256):
        super().__init__()
        stages, inputs = [], in_channels
        for index, blocks in enumerate(layers):
            planes, modules = in_channels * 2**index, []
            for block in range(blocks):
                stride = 2 if block == 0 and index > 0 else 1
                modules.append(Bottleneck(inputs, planes, stride, groups, width_per_group))
                inputs = planes * 4
            stages.append(nn.Sequential(*modules))
        self.pretrained = nn.Module()
        self.pretrained.layer1 = nn.Sequential(
            nn.Conv2d(3, in_channels, 7, 2, 3, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            stages[0],
        )
        self.pretrained.layer2, self.pretrained.layer3, self.pretrained.layer4 = stages[1:]
        self.scratch = nn.Module()
        for index in range(4):
            channels = in_channels * 2**index * 4
            setattr(self.scratch, f"layer{index + 1}_rn", nn.Conv2d(channels, features, 3, padding=1, bias=False))
            setattr(self.scratch, f"refinenet{index + 1}", Fusion(features))
        self.scratch.output_conv = nn.Sequential(
            nn.Conv2d(features, features // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(features // 2, features // 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(features // 8, 1, 1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        stages = []
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self.pretrained, layer)(x)
            stages.append(x)
        path = None
        for index in (4, 3, 2, 1):
            fusion = getattr(self.scratch, f"refinenet{index}")
            skip = getattr(self.scratch, f"layer{index}_rn")(stages[index - 1])
            path = fusion(skip) if path is None else fusion(path, skip)
        return torch.squeeze(self.scratch.output_conv(path), dim=1)


def lively(model, seed=0):
    """Gives ``model`` weights with which every path matters: batch statistics and biases away from their defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.ndim == 4:
                fan_in = tensor.shape[1] * tensor.shape[2] * tensor.shape[3]
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (1.5 / fan_in) ** 0.5)
            elif tensor.ndim == 1 and name.endswith("weight"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5)
            elif tensor.ndim == 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1 + 0.05)
        model.scratch.output_conv[4].bias.fill_(1.0)
    return model


def torch_loss(prediction, target, mask, name="ssi_mse", alpha=0.5, scales=4, trim=0.2):
    """The formulas of the paper, image by image, with a linear solver, torch.median and torch.sort."""
    total_mask = mask.sum()
    if total_mask == 0:
        return prediction.sum() * 0
    residuals, data = [], 0
    for p, t, m in zip(prediction, target, mask):
        valid = m > 0
        if not valid.any():
            residual = p * 0
        elif name == "ssi_mse":
            residual = _aligned(p, t, valid) - t
            data = data + (residual[valid] ** 2).sum()
        else:
            residual = _median_and_deviation_removed(p, valid) - _median_and_deviation_removed(t, valid)
            size = residual[valid].abs()
            data = data + (size * _kept(size.detach(), trim if name == "ssi_trim" else 0)).sum()
        residuals.append(residual)
    residual = torch.stack(residuals)
    loss = data / (2 * total_mask)
    for step in (2**scale for scale in range(scales)):
        r, m = residual[:, ::step, ::step], mask[:, ::step, ::step]
        if m.sum() == 0:
            continue
        horizontal = ((r[:, :, 1:] - r[:, :, :-1]).abs() * m[:, :, 1:] * m[:, :, :-1]).sum()
        vertical = ((r[:, 1:] - r[:, :-1]).abs() * m[:, 1:] * m[:, :-1]).sum()
        loss = loss + alpha * (horizontal + vertical) / m.sum()
    return loss


def _aligned(p, t, valid):
    """Least squares; see ``align_scale_shift`` for inverted predictions."""
    if valid.sum() < 2 or p[valid].max() == p[valid].min():
        return p * 0
    design = torch.stack([p[valid], torch.ones_like(p[valid])], dim=1)
    scale, shift = torch.linalg.solve(design.T @ design, design.T @ t[valid])
    if scale < 0:  # inverted
        scale = t[valid].std() / p[valid].std()
        shift = t[valid].mean() - scale * p[valid].mean()
    return scale * p + shift


def _median_and_deviation_removed(x, valid):
    if x[valid].max() == x[valid].min():
        return x * 0
    x = x - x[valid].median()
    return x / x[valid].abs().mean()


def _kept(sizes, trim):
    """Weights that leave out the largest ``floor(trim * count)``; equal sizes have equal weights."""
    removed = int(trim * len(sizes) + 1e-9)
    weights = torch.ones_like(sizes)
    weights[sizes.argsort(descending=True)[:removed]] = 0
    _, group, members = sizes.unique(return_inverse=True, return_counts=True)
    return (torch.zeros(len(members), dtype=sizes.dtype).index_add(0, group, weights) / members)[group]
