"""What the rest of the package asks of a model, whatever its encoder and decoder."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import nn

from .bottleneck_allspark import AllSparkBottleneck
from .configuration_allspark import AllSparkFields
from .modeling_allspark import FeatureMaps, SemiSupervisedSegmenterOutput


class Segmenter(Protocol):
    """
    A semantic segmentation model of an encoder, the AllSpark bottleneck and a decoder. [`SemiSupervisedSegmenter`] has
    everything that does not depend on the encoder, so a new model adds only `run_encoder`, `decode_features` and
    `classify`, and its configuration `bottleneck_channels` and `encoder_stride`. `tests/segmenter_tester.py` tests it.

    Attributes:
        config ([`AllSparkFields`]): the configuration, which has the properties below, too, and `token_grid_of`.
        bottleneck ([`AllSparkBottleneck`], *optional*): None with `config.use_cross_attention=False`.
        bottleneck_channels (`int`): channels of the encoder's last feature map.
        encoder_stride (`int`): pixels per position of the encoder's last feature map, along each side.
        side_multiple (`int`): the sides of an image must be multiples of this; 1 if any size works.
        smallest_side (`int`): the fewest pixels a side that the encoder takes.
        crop_height_width (`tuple[int, int]`): training crop in pixels.
        token_grid (`tuple[int, int]`): (height, width) of the encoder's last feature map for a training crop.
    """

    config: AllSparkFields
    bottleneck: AllSparkBottleneck | None
    bottleneck_channels: int
    encoder_stride: int
    side_multiple: int
    smallest_side: int
    crop_height_width: tuple[int, int]
    token_grid: tuple[int, int]

    def encode(self, pixel_values: torch.Tensor) -> FeatureMaps:
        """
        The encoder's feature maps, as the bottleneck and the decoder need them.

        Args:
            pixel_values (`torch.Tensor`): float (batch, 3, height, width), normalized.

        Returns:
            `tuple[torch.Tensor, ...]`: float (batch, channels, height, width) each; the last one goes through the
            bottleneck.
        """

    def decode_features(self, features: FeatureMaps, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        What the classifier gets, before dropout.

        Args:
            features (`tuple[torch.Tensor, ...]`): feature maps, of which the last one left the bottleneck.
            pixel_values (`torch.Tensor`): float (batch, 3, height, width), normalized: the images they come from.

        Returns:
            `torch.Tensor`: float (batch, channels, head height, head width). The map spans the image, and where the
            model pads images to a multiple of its patch, the padded image.
        """

    def decode(self, features: FeatureMaps, pixel_values: torch.Tensor) -> torch.Tensor:
        """The classifier's float logits (batch, num_labels, height, width); arguments as in `decode_features`."""

    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters that are trained with the encoder's learning rate; all others belong to the head."""

    def __call__(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        unlabeled_pixel_values: torch.Tensor | None = None,
        unlabeled_logits: torch.Tensor | None = None,
        unlabeled_features: torch.Tensor | None = None,
        read_memory: bool = True,
        perturb: Callable[[FeatureMaps], FeatureMaps] | None = None,
        output_decoder_features: bool = False,
    ) -> SemiSupervisedSegmenterOutput:
        """See [`SemiSupervisedSegmenter.forward`]."""
