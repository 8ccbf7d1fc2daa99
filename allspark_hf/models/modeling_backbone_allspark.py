"""Semi-supervised segmentation with any encoder that transformers' AutoBackbone has."""

from types import MethodType

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BackboneOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .bottleneck_allspark import AllSparkBottleneck, at_least_float32
from .configuration_backbone_allspark import AllSparkBackboneConfig, encoder_shape
from .heads_allspark import HEADS, ImageStem, SkipClassifier, ZeroConv2d
from .modeling_allspark import FeatureMaps, SemiSupervisedSegmenter


class BackboneForSemiSupervisedSegmentation(SemiSupervisedSegmenter, PreTrainedModel):
    """
    An encoder of transformers' `AutoBackbone`, the AllSpark bottleneck on its last feature map, and a decode head.

    Images may have any size: the model pads them with zeros, the mean color, at the right and bottom to a multiple of
    the patch and crops the logits, which have the size of the images.
    """

    config: AllSparkBackboneConfig
    config_class = AllSparkBackboneConfig
    _auto_class = "AutoModelForSemanticSegmentation"  # by which `save_pretrained` copies this file
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: AllSparkBackboneConfig):
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        self.padded_multiple = config.padded_multiple
        shape = encoder_shape(config.backbone_config)
        for name, parameter in self.backbone.named_parameters():
            if name in shape.unused:  # DistributedDataParallel waits for every gradient
                parameter.requires_grad_(False)
        if config.position_interpolation == "scale_factor":
            embeddings = self.backbone.embeddings
            embeddings.interpolate_pos_encoding = MethodType(interpolate_positions_by_factor, embeddings)
        self.bottleneck = None
        if config.use_cross_attention:
            self.bottleneck = AllSparkBottleneck(config, config.bottleneck_channels)
        self.decode_head = HEADS[config.head](config)
        width = config.decoder_hidden_size
        self.image_stem = ImageStem(width) if config.use_image_stem else None
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)
        self.skip_classifier = None
        if config.use_skip_classifier:
            self.skip_classifier = SkipClassifier(shape.channels[-2:], config.num_labels)
        self.post_init()

    def encoder_parameters(self):
        """Those of the encoder that are trained: not frozen, and reached by the feature maps."""
        return [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, ZeroConv2d):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):  # torch's own way: 0.02 is too small for a deep head
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = (module.weight[0].numel()) ** -0.5
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    def run_encoder(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        return self.backbone.forward_with_filtered_kwargs(
            pad_to_multiple(pixel_values, self.padded_multiple), **kwargs
        )

    def decode_features(self, features: FeatureMaps, pixel_values: torch.Tensor) -> torch.Tensor:
        decoded = self.decode_head(features)
        if self.image_stem is not None:
            decoded = self.image_stem(decoded, pad_to_multiple(pixel_values, self.padded_multiple))
        return decoded

    def classify(self, decoder_features: torch.Tensor, features: FeatureMaps, size: torch.Size) -> torch.Tensor:
        logits = self.classifier(self.dropout(decoder_features))
        if self.skip_classifier is not None:
            logits = logits + self.skip_classifier(features[-2:], logits.shape[2:])
        padded = padded_size(size, self.padded_multiple)
        # In half precision, logits near each other would become equal at the borders of classes.
        logits = F.interpolate(at_least_float32(logits), size=padded, mode="bilinear", align_corners=True)
        return logits[:, :, : size[0], : size[1]]


def pad_to_multiple(pixel_values: torch.Tensor, multiple: int) -> torch.Tensor:
    """Float (batch, 3, height, width) with zeros at the right and bottom, up to multiples of a number of pixels."""
    height, width = pixel_values.shape[2:]
    padded_height, padded_width = padded_size((height, width), multiple)
    return F.pad(pixel_values, (0, padded_width - width, 0, padded_height - height))


def padded_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """(height, width), each rounded up to a multiple of a number of pixels."""
    # Written so that torch.export knows that a stride of the encoder divides it; it does not with a remainder.
    height, width = ((side + multiple - 1) // multiple * multiple for side in size)
    return height, width


def interpolate_positions_by_factor(
    embeddings: nn.Module, tokens: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """
    DINOv2's position embeddings for another image size, as DINOv2's and UniMatch V2's code does it: scaled to 0.1
    positions a side more than the patch grid has.

    Args:
        embeddings (`nn.Module`): DINOv2's, of transformers.
        tokens (`torch.Tensor`): float (batch, 1 + patches, channels), not read; transformers passes it.
        height (`int`): of the image in pixels.
        width (`int`): of the image in pixels.

    Returns:
        `torch.Tensor`: float (1, 1 + patches, channels), the class token's first.
    """
    positions = embeddings.position_embeddings
    side = int((positions.shape[1] - 1) ** 0.5)
    patch_height, patch_width = embeddings.patch_embeddings.patch_size
    grid = height // patch_height, width // patch_width
    if grid == (side, side):
        return positions
    square = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
    factors = tuple((count + 0.1) / side for count in grid)
    fitted = F.interpolate(square, scale_factor=factors, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], fitted.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


# pipeline("image-segmentation") logs an error for a class that it does not find in this table.
CLASS_NAME = BackboneForSemiSupervisedSegmentation.__name__
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[AllSparkBackboneConfig.model_type] = CLASS_NAME
