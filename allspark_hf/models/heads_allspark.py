"""Decode heads: from the feature maps of any encoder to what a classifier gets."""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_backbone_allspark import AllSparkBackboneConfig


FeatureMaps = tuple[torch.Tensor, ...]


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.conv2(F.relu(self.conv1(F.relu(features))))


class Fusion(nn.Module):
    """Joins one level with what came from the deeper ones, and enlarges the result to the next level's size."""

    def __init__(self, width: int, deepest: bool):
        super().__init__()
        self.residual_level = None if deepest else ResidualUnit(width)
        self.residual_fused = ResidualUnit(width)
        self.project = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, level: torch.Tensor, deeper: torch.Tensor | None, size) -> torch.Tensor:
        fused = level if deeper is None else deeper + self.residual_level(level)
        fused = F.interpolate(self.residual_fused(fused), size=size, mode="bilinear", align_corners=True)
        return self.project(fused)


class DPTHead(nn.Module):
    """
    The head of UniMatch V2 (`model/semseg/dpt.py`), after DPT (Ranftl et al., ICCV 2021), up to the features before
    the classifier. Four maps of one size become levels of 4, 2, 1 and 1/2 times that size; a pyramid has its levels.
    The first level's size is doubled: 8 positions per patch of a plain ViT.
    """

    def __init__(self, config: AllSparkBackboneConfig):
        super().__init__()
        width, channels, neck = config.decoder_hidden_size, config.feature_channels, config.neck_hidden_sizes
        pairs = list(zip(channels, neck, strict=True))
        self.project = nn.ModuleList(nn.Conv2d(given, size, kernel_size=1) for given, size in pairs)
        self.resize = nn.ModuleList(nn.Identity() for _ in neck)
        if len(set(config.feature_strides)) == 1:
            self.resize[0] = nn.ConvTranspose2d(neck[0], neck[0], kernel_size=4, stride=4)
            self.resize[1] = nn.ConvTranspose2d(neck[1], neck[1], kernel_size=2, stride=2)
            self.resize[3] = nn.Conv2d(neck[3], neck[3], kernel_size=3, stride=2, padding=1)
        self.levels = nn.ModuleList(nn.Conv2d(size, width, kernel_size=3, padding=1, bias=False) for size in neck)
        self.fusions = nn.ModuleList(Fusion(width, deepest=level == len(neck) - 1) for level in range(len(neck)))
        self.output = nn.Conv2d(width, width, kernel_size=3, padding=1)

    def forward(self, features: FeatureMaps) -> torch.Tensor:
        """Float (batch, decoder_hidden_size, height, width), twice the size of the first level."""
        parts = zip(features, self.project, self.resize, self.levels, strict=True)
        levels = [level(resize(project(maps))) for maps, project, resize, level in parts]
        fused = None
        for place in reversed(range(len(levels))):
            size = levels[place - 1].shape[2:] if place else [2 * side for side in levels[0].shape[2:]]
            fused = self.fusions[place](levels[place], fused, size)
        return F.relu(self.output(fused))


class AllMLPHead(nn.Module):
    """SegFormer's head (Xie et al., NeurIPS 2021, Section 3.2) for any number of maps, up to the classifier."""

    def __init__(self, config: AllSparkBackboneConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.project = nn.ModuleList(nn.Linear(channels, width) for channels in config.feature_channels)
        self.fuse = nn.Conv2d(width * len(self.project), width, kernel_size=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)

    def forward(self, features: FeatureMaps) -> torch.Tensor:
        """Float (batch, decoder_hidden_size, height, width), of the first map's size."""
        size = features[0].shape[2:]
        projected = []
        for maps, project in zip(features, self.project, strict=True):
            maps = project(maps.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, maps.shape[2:])
            projected.append(F.interpolate(maps, size=size, mode="bilinear", align_corners=False))
        return F.relu(self.batch_norm(self.fuse(torch.cat(projected[::-1], dim=1))))


class ImageStem(nn.Module):
    """Adds what the image shows at half its size to the features of a head."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, kernel_size=3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width // 2, width // 2, kernel_size=3, padding=1)
        self.fuse = nn.Conv2d(width + width // 2, width, kernel_size=3, padding=1)

    def forward(self, features: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Float (batch, width, height / 2, width / 2), from features of any size and the images."""
        image = F.relu(self.conv2(F.relu(self.conv1(pixel_values))))
        features = F.interpolate(features, size=image.shape[2:], mode="bilinear", align_corners=True)
        return F.relu(self.fuse(torch.cat([features, image], dim=1)))


class SkipClassifier(nn.Module):
    """A linear classifier on each of some feature maps; without effect until it is trained."""

    def __init__(self, channels: tuple[int, ...], num_labels: int):
        super().__init__()
        self.classifiers = nn.ModuleList(ZeroConv2d(width, num_labels, kernel_size=1) for width in channels)

    def forward(self, features: FeatureMaps, size) -> torch.Tensor:
        """The sum of their logits, float (batch, num_labels, *size)."""
        logits = [classify(maps) for classify, maps in zip(self.classifiers, features, strict=True)]
        return sum(F.interpolate(one, size=size, mode="bilinear", align_corners=True) for one in logits)


class ZeroConv2d(nn.Conv2d):
    """A convolution of a class of its own, so that `_init_weights` can fill it with zeros."""


HEADS = {"dpt": DPTHead, "all_mlp": AllMLPHead}
