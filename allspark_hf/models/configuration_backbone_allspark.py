"""Configuration of a model with any encoder that transformers' AutoBackbone has."""

import copy
import dataclasses
import json
import math
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, __version__
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from .configuration_allspark import MAX_SIZE, AllSparkFields


NUM_LEVELS = 4  # feature maps that the head gets unless the configuration says otherwise
# The blocks whose output UniMatch V2 takes; other depths are cut into quarters.
VIT_STAGES = {24: (5, 12, 18, 24)}
# Width of the encoder -> decoder_hidden_size and neck_hidden_sizes (UniMatch V2, model/semseg/dpt.py).
DPT_SIZES = {
    384: (64, (48, 96, 192, 384)),
    768: (128, (96, 192, 384, 768)),
    1024: (256, (256, 512, 1024, 1024)),
    1536: (384, (1536, 1536, 1536, 1536)),
}
PYRAMID_DPT_SIZE = 128
ALL_MLP_SIZE = 256
PROBE_SIZES = ((448, 672), (672, 448))  # multiples of 14, 16 and 32

MODEL_REFERENCE = "modeling_backbone_allspark.BackboneForSemiSupervisedSegmentation"
AUTO_MAP = {
    "AutoConfig": "configuration_backbone_allspark.AllSparkBackboneConfig",
    "AutoModel": MODEL_REFERENCE,
    "AutoModelForSemanticSegmentation": MODEL_REFERENCE,
}


class EncoderShape(NamedTuple):
    """
    What an encoder gives, found by running it without numbers.

    Args:
        channels (`tuple[int, ...]`): of each feature map.
        strides (`tuple[int, ...]`): pixels per position of each feature map, along each side.
        unused (`frozenset[str]`): names of parameters that no feature map depends on.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    unused: frozenset[str]


def encoder_shape(config: PreTrainedConfig) -> EncoderShape:
    """
    Runs an encoder on tensors without content, because `channels` of transformers' backbones is wrong for some.

    Args:
        config (`PreTrainedConfig`): of a class with a Backbone in transformers.

    Raises:
        ValueError: if no encoder can be built, or it does not take images of any size.
    """
    return _encoder_shape(type(config), json.dumps(config.to_dict(), sort_keys=True, default=str))


@lru_cache(maxsize=64)
def _encoder_shape(kind: type[PreTrainedConfig], fields: str) -> EncoderShape:
    name = kind.model_type
    try:
        with torch.device("meta"), torch.enable_grad():
            encoder = AutoBackbone.from_config(kind.from_dict(json.loads(fields))).eval()
            both = [encoder(torch.empty(1, 3, *size)).feature_maps for size in PROBE_SIZES]
            sum(maps.sum() for maps in both[0]).backward()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"The encoder {name!r} does not take images of any size (at {PROBE_SIZES[0]} pixels: {reason}): choose "
            "another, such as dinov2, whose positions are interpolated."
        ) from error
    if any(maps.ndim != 4 for maps in both[0]):
        raise ValueError(
            f"The encoder {name!r} gives no feature maps (batch, channels, height, width): choose another."
        )
    strides = []
    for one, other in zip(*both, strict=True):
        (height, width), turned = one.shape[2:], other.shape[2:]
        stride = PROBE_SIZES[0][0] // height
        if (height * stride, width * stride) != PROBE_SIZES[0] or turned != (width, height):
            raise ValueError(
                f"The encoder {name!r} gives maps of {height} x {width} for {PROBE_SIZES[0]} pixels, which is no "
                "whole number of pixels per position: choose another, or another patch size."
            )
        strides.append(stride)
    unused = frozenset(name for name, parameter in encoder.named_parameters() if parameter.grad is None)
    return EncoderShape(tuple(maps.shape[1] for maps in both[0]), tuple(strides), unused)


def default_out_indices(config: PreTrainedConfig) -> list[int]:
    """
    The four stages whose maps the head gets: the last four of a pyramid, the ends of four quarters of a plain ViT.

    Args:
        config (`PreTrainedConfig`): of an encoder, with `stage_names`.
    """
    last, first = len(config.stage_names) - 1, int(config.stage_names[0] == "stem")
    if last in VIT_STAGES:
        return list(VIT_STAGES[last])
    if last - first < 2 * NUM_LEVELS:  # a pyramid has few stages
        return list(range(max(first, last + 1 - NUM_LEVELS), last + 1))
    return [last * level // NUM_LEVELS for level in range(1, NUM_LEVELS + 1)]


@strict
class AllSparkBackboneConfig(AllSparkFields, PreTrainedConfig):
    r"""
    Configuration of [`BackboneForSemiSupervisedSegmentation`]: an encoder of transformers' `AutoBackbone`, a decode
    head, and the fields of [`AllSparkFields`] for the bottleneck between them.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            The encoder. Its `out_indices` say which feature maps the head gets; the last goes through the bottleneck.
            Default: DINOv2 base with the blocks that UniMatch V2 takes.
        head (`str`, *optional*, defaults to `"dpt"`):
            `"dpt"`, UniMatch V2's head, for four maps; or `"all_mlp"`, SegFormer's, for any number of them.
        decoder_hidden_size (`int`, *optional*):
            Width of the head. Default: for `"dpt"` UniMatch V2's for the width of a plain ViT, from 64 to 384, and 128
            for a pyramid; 256 for `"all_mlp"`.
        neck_hidden_sizes (`list[int]`, *optional*):
            `"dpt"` only: channels of the four levels before they are fused. Default: UniMatch V2's for a plain ViT,
            the encoder's own for a pyramid.
        classifier_dropout_prob (`float`, *optional*, defaults to 0.0):
            Probability of dropping a whole channel before the classifier.
        use_skip_classifier (`bool`, *optional*, defaults to `True`):
            Whether a linear classifier on the last two feature maps, zero at the start, is added to the head's logits.
            It matters most where few images are labeled. The bottleneck, if there is one, rebuilds the last map first.
        use_image_stem (`bool`, *optional*, defaults to `False`):
            Whether two convolutions of the image at half its size join the head's features before the classifier, for
            objects smaller than a patch.
        position_interpolation (`str`, *optional*, defaults to `"size"`):
            How DINOv2's position embeddings are fitted to another image size: `"size"` as in transformers, or
            `"scale_factor"` as in DINOv2's and UniMatch V2's code, by 0.1 positions more than the grid has.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of new weights in the bottleneck.

    Raises:
        `StrictDataclassClassValidationError`: if two settings contradict each other, a value is out of range, or the
            encoder cannot be used.
        ValueError: if `backbone_config` names no encoder of transformers or has a field that its class does not have.

    Example:

    ```python
    >>> from transformers import Dinov2Config
    >>> from allspark_hf import AllSparkBackboneConfig

    >>> encoder = Dinov2Config(hidden_size=384, num_attention_heads=6, out_indices=[3, 6, 9, 12])
    >>> AllSparkBackboneConfig(backbone_config=encoder, num_labels=21, crop_size=518).token_grid
    (37, 37)
    ```"""

    model_type = "allspark_backbone"
    _auto_class = "AutoConfig"  # by which `save_pretrained` copies this file
    code_map = AUTO_MAP
    sub_configs = {"backbone_config": AutoConfig}
    shape_fields = (
        *("num_labels", "encoder", "head", "decoder_hidden_size", "neck_hidden_sizes"),
        *("use_skip_classifier", "use_image_stem", "position_interpolation"),
        *AllSparkFields.shape_fields,
    )

    backbone_config: dict | PreTrainedConfig | None = None
    head: Literal["dpt", "all_mlp"] = "dpt"
    decoder_hidden_size: int | None = None
    neck_hidden_sizes: list[int] | tuple[int, ...] | None = None
    classifier_dropout_prob: float | int = 0.0
    use_skip_classifier: bool = True
    use_image_stem: bool = False
    position_interpolation: Literal["size", "scale_factor"] = "size"
    semantic_loss_ignore_index: int = 255
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.backbone_config = _encoder_config(self.backbone_config)
        channels, strides, _ = encoder_shape(self.backbone_config)
        if self.head == "dpt" and (self.decoder_hidden_size is None or self.neck_hidden_sizes is None):
            width, neck = _dpt_sizes(channels, plain=len(set(strides)) == 1)
            self.decoder_hidden_size = self.decoder_hidden_size or width
            self.neck_hidden_sizes = self.neck_hidden_sizes or neck
        self.decoder_hidden_size = self.decoder_hidden_size or ALL_MLP_SIZE
        super().__post_init__(**kwargs)

    @property
    def encoder(self) -> dict:
        """What decides the encoder's weights: the fields of `backbone_config` besides names and versions."""
        stored = self.backbone_config.to_dict()
        left_out = {"_name_or_path", "transformers_version", "architectures", "dtype", "id2label", "label2id"}
        return json.loads(json.dumps({name: value for name, value in stored.items() if name not in left_out}))

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each of the encoder's feature maps."""
        return encoder_shape(self.backbone_config).channels

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Pixels per position of each of the encoder's feature maps, along each side."""
        return encoder_shape(self.backbone_config).strides

    @property
    def bottleneck_channels(self) -> int:
        """Channels of the encoder's last feature map."""
        return self.feature_channels[-1]

    @property
    def encoder_stride(self) -> int:
        """Pixels per position of the encoder's last feature map, along each side."""
        return self.feature_strides[-1]

    @property
    def padded_multiple(self) -> int:
        """The model pads images at the right and bottom to multiples of this, so that every pixel is seen."""
        return math.lcm(*self.feature_strides)

    def token_grid_of(self, height: int, width: int) -> tuple[int, int]:
        multiple, stride = self.padded_multiple, self.encoder_stride
        return tuple(math.ceil(side / multiple) * multiple // stride for side in (height, width))

    def validate_architecture(self):
        """Refuses settings that no model can be built from; called by `@strict` after construction and on saving."""
        super().validate_architecture()
        self._validate_fields()
        if self.head == "dpt" and not len(self.feature_channels) == len(self.neck_hidden_sizes) == NUM_LEVELS:
            raise ValueError(
                f"The dpt head needs {NUM_LEVELS} feature maps and neck_hidden_sizes, but out_indices of the encoder "
                f"are {list(self.backbone_config.out_indices)} and neck_hidden_sizes {list(self.neck_hidden_sizes)}: "
                f"set four of each (out_indices={default_out_indices(self.backbone_config)}, say), or head='all_mlp'."
            )
        if self.position_interpolation == "scale_factor" and self.backbone_config.model_type != "dinov2":
            raise ValueError(
                "position_interpolation='scale_factor' is DINOv2's, but the encoder is "
                f"{self.backbone_config.model_type!r}: leave it at 'size'."
            )
        for name in ("decoder_hidden_size", "num_labels"):
            if not 1 <= getattr(self, name) <= MAX_SIZE:
                raise ValueError(f"{name}={getattr(self, name)}: set it from 1 to {MAX_SIZE}.")
        if not 0 <= self.classifier_dropout_prob < 1:
            raise ValueError(f"classifier_dropout_prob={self.classifier_dropout_prob}: set it in [0, 1).")


def _dpt_sizes(channels: tuple[int, ...], plain: bool) -> tuple[int, list[int]]:
    """`decoder_hidden_size` and `neck_hidden_sizes` for these maps, of a plain ViT or a pyramid."""
    if plain and channels[-1] in DPT_SIZES:
        width, neck = DPT_SIZES[channels[-1]]
        return width, list(neck)
    if not plain:
        return PYRAMID_DPT_SIZE, list(channels)
    width = min([size for base, (size, _) in DPT_SIZES.items() if channels[-1] <= base], default=384)
    return width, [max(1, channels[-1] >> shift) for shift in (3, 2, 1, 0)]


def _encoder_config(given: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    """A configuration object of an encoder, checked; ValueError if transformers has no Backbone of the type."""
    if isinstance(given, PreTrainedConfig):
        config = copy.deepcopy(given)  # a model of this configuration changes its attention
    else:
        fields = dict(given or {"model_type": "dinov2"})
        kind = fields.pop("model_type", None)
        if kind not in CONFIG_MAPPING:
            raise ValueError(
                f"backbone_config has model_type={kind!r}, which transformers does not know: set that of an encoder, "
                "such as 'dinov2'."
            )
        known = {field.name for field in dataclasses.fields(CONFIG_MAPPING[kind])}
        config = CONFIG_MAPPING[kind](**fields)
        if not given:
            config.out_indices = default_out_indices(config)
        elif unknown := sorted(
            name for name in fields if name not in known and not hasattr(CONFIG_MAPPING[kind](), name)
        ):
            raise ValueError(f"backbone_config of {kind!r} has no field {', '.join(unknown)}: correct the names.")
    check_has_backbone(config)
    for name, value in vars(config).items():
        if isinstance(value, tuple):  # a default; ConvNeXt and FocalNet add a list to it
            setattr(config, name, list(value))
    config._name_or_path = ""  # which would be saved, and name folders of the machine that trained
    config.dtype = None  # the model's, whatever type an encoder was saved in
    if hasattr(config, "reshape_hidden_states"):
        config.reshape_hidden_states = True  # else ViTs give tokens instead of maps
    return config


def check_has_backbone(config: PreTrainedConfig):
    """ValueError for a configuration of which transformers has no Backbone class, or none with stages."""
    if config.model_type not in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        raise ValueError(
            f"transformers {__version__} has no Backbone class of {config.model_type!r}: choose an encoder that has, "
            "such as dinov2, dinov3_vit, swin, convnext, resnet or pvt_v2."
        )
    if not hasattr(config, "stage_names"):
        raise ValueError(
            f"The configuration of {config.model_type!r} names no stages, whose maps the head needs: choose another "
            "encoder, such as dinov2."
        )
