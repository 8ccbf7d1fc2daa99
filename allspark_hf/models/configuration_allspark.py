"""AllSpark model configuration."""

import math
from dataclasses import dataclass
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import SegformerConfig
from transformers.activations import ACT2FN


MAX_SIZE = 100_000
MAX_LAYERS = 1000
STAGE_FIELDS = ("hidden_sizes", "depths", "num_attention_heads", "sr_ratios", "patch_sizes", "strides", "mlp_ratios")
DROPOUT_FIELDS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob", "drop_path_rate")
MEMORY_SIZES = (0.5, 1, 2, 4)

# Mix Transformer geometry (SegFormer paper, Table 6): hidden_sizes, depths, decoder_hidden_size.
MIT_SIZES = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": ((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": ((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": ((64, 128, 320, 512), (3, 6, 40, 3), 768),
}

# For trust_remote_code=True, config.json names the class for each Auto class as "file.class"; the files lie beside it.
MODEL_REFERENCE = "modeling_allspark.SegformerForSemiSupervisedSegmentation"
AUTO_MAP = {
    "AutoConfig": "configuration_allspark.AllSparkConfig",
    "AutoModel": MODEL_REFERENCE,
    "AutoModelForSemanticSegmentation": MODEL_REFERENCE,
}


@dataclass(init=False, repr=False, eq=False, kw_only=True)
class AllSparkFields:
    r"""
    What every configuration of a model with the AllSpark bottleneck has, whatever its encoder. To be inherited before
    a [`~transformers.PreTrainedConfig`], which then has these fields. C is the number of channels that the bottleneck
    gets from the encoder, `bottleneck_channels`.

    Args:
        channel_attention_heads (`int`, *optional*, defaults to 2):
            Heads of the channel-wise attention. Every head has the full width C.
        channel_attention_dropout (`float`, *optional*, defaults to 0.1):
            Dropout after the softmax and after the output projection of the channel-wise attention.
        memory_size (`float`, *optional*, defaults to 1):
            Channels that a class slot of the semantic memory holds, as a multiple of C: 0.5, 1, 2 or 4 (paper,
            supplementary Table a).
        crop_size (`int` or `list[int]`, *optional*, defaults to 513):
            Training crop in pixels, one side of a square or `[height, width]`. It fixes the number of tokens that a
            channel in the memory has, those of `token_grid`. Inference takes any size.
        use_cross_attention (`bool`, *optional*, defaults to `True`):
            Whether the bottleneck exists at all (paper, Table 5, "CCA").
        use_memory (`bool`, *optional*, defaults to `True`):
            Whether labeled images attend to the semantic memory (Table 5, "S-Mem") rather than to the unlabeled
            images of their own batch.
        use_grouping (`bool`, *optional*, defaults to `True`):
            Whether channels are sorted into the memory's class slots (Table 5, "CSG"). If False, one ring of the same
            total size takes every channel in order.
        grouping_similarity (`str`, *optional*, defaults to `"cosine"`):
            Similarity of a class map and a channel: `"cosine"` as in the authors' code, `"instance_norm"` as in the
            paper's Eq. 4.
        grouping_source (`str`, *optional*, defaults to `"logits"`):
            What the class maps are: `"logits"` as in the authors' code, `"probabilities"` as in the paper.
        mix_images_in_eval (`bool`, *optional*, defaults to `False`):
            In eval mode, let every image attend to all images of its batch, as the authors' code does. Meant for
            comparisons only: predictions then depend on the batch.
        base_weights (`str`, *optional*):
            Weights that the training started from, such as `"nvidia/mit-b5"`. The license of a model depends on them.
        base_license (`str`, *optional*):
            License of those weights, where it was found out when they were loaded: an identifier of the Hub's, such
            as `"apache-2.0"`, or another license's name, such as `"dinov3-license"`.
        mask_values (`list[int]`, *optional*):
            Values that stand for the classes, in order, in the masks of the training data. None: 0, 1, 2, ...
            Training, evaluation and figures read masks by them, such as `[0, 255]` for binary masks.
        ignored_mask_values (`list[int]`, *optional*):
            Values in the masks of the training data that are ignored, besides `semantic_loss_ignore_index`.
        image_range (`list[int]`, *optional*):
            Values `[black, white]` of the training data's 16-bit images: they are scaled so that these become 0 and
            255. None: 0 and 65535. 8-bit images are taken as they are.
        tiff_page (`int`, *optional*):
            Page of the TIFF files of the training data, from 0 on. None: files of several pages are refused.
        palette (`list[list[int]]`, *optional*):
            Color of each class, `[red, green, blue]` in 0..255.
    """

    channel_attention_heads: int = 2
    channel_attention_dropout: float | int = 0.1
    memory_size: float | int = 1
    crop_size: int | list[int] | tuple[int, ...] = 513
    use_cross_attention: bool = True
    use_memory: bool = True
    use_grouping: bool = True
    grouping_similarity: Literal["cosine", "instance_norm"] = "cosine"
    grouping_source: Literal["logits", "probabilities"] = "logits"
    mix_images_in_eval: bool = False
    base_weights: str | None = None
    base_license: str | None = None
    mask_values: list[int] | None = None
    ignored_mask_values: list[int] | None = None
    image_range: list[int] | None = None
    tiff_page: int | None = None
    palette: list[list[int]] | None = None

    code_map = {}  # Auto class -> "file.class", for trust_remote_code=True
    # Fields that decide the shape or the meaning of weights and memory: a training cannot be resumed with others.
    shape_fields = ("channel_attention_heads", "use_cross_attention", "use_memory", "use_grouping", "memory_size")

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; `auto_map` in config.json then names the model's code for every Auto class."""
        auto_map = {**self.code_map, **(getattr(self, "auto_map", None) or {})}
        # Saving a model has just set this entry to the class of the model, which may be a user's subclass.
        self.auto_map = {**auto_map, "AutoModel": auto_map["AutoModelForSemanticSegmentation"]}
        super().save_pretrained(save_directory, *args, **kwargs)

    def __post_init__(self, **kwargs):
        kwargs.pop("share_memory", None)  # a field until version 0.1.0; it belongs to the training
        super().__post_init__(**kwargs)

    @property
    def bottleneck_channels(self) -> int:
        """C, channels of the feature map that goes through the bottleneck."""
        raise NotImplementedError

    @property
    def encoder_stride(self) -> int:
        """Pixels per token of that feature map, along each side."""
        raise NotImplementedError

    @property
    def smallest_side(self) -> int:
        """The fewest pixels a side that the encoder takes."""
        return 1

    @property
    def crop_height_width(self) -> tuple[int, int]:
        """Training crop as (height, width) in pixels."""
        return (self.crop_size, self.crop_size) if isinstance(self.crop_size, int) else tuple(self.crop_size)

    @property
    def token_grid(self) -> tuple[int, int]:
        """(height, width) of the bottleneck's feature map for a training crop."""
        return self.token_grid_of(*self.crop_height_width)

    def token_grid_of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the bottleneck's feature map for an image: each side over the stride, rounded up."""
        return math.ceil(height / self.encoder_stride), math.ceil(width / self.encoder_stride)

    def _validate_fields(self):
        """Raises ValueError for fields of this class that contradict each other or are out of range."""
        self._validate_switches()
        if self.memory_size not in MEMORY_SIZES:
            raise ValueError(f"memory_size={self.memory_size} is not one of {MEMORY_SIZES}: choose one of them.")
        if self.bottleneck_channels % 2 and self.memory_size == 0.5:
            raise ValueError(
                f"memory_size=0.5 needs an even number of channels, but the encoder has {self.bottleneck_channels}: "
                "set memory_size=1 or change the encoder."
            )
        if not 1 <= self.channel_attention_heads <= MAX_SIZE:
            raise ValueError(f"channel_attention_heads={self.channel_attention_heads}: set at least 1 head.")
        if not 0 <= self.channel_attention_dropout < 1:
            raise ValueError(f"channel_attention_dropout={self.channel_attention_dropout}: set it in [0, 1).")
        if len(self.crop_height_width) != 2 or not all(1 <= side <= MAX_SIZE for side in self.crop_height_width):
            raise ValueError(
                f"crop_size={self.crop_size} is neither a side of 1 to {MAX_SIZE} pixels nor two of them: set one "
                "integer for a square crop or [height, width]."
            )
        if self.image_range is not None and not (
            len(self.image_range) == 2 and 0 <= self.image_range[0] < self.image_range[1] <= 65535
        ):
            raise ValueError(
                f"image_range={self.image_range} is not [black, white], two 16-bit values, 0 to 65535, the smaller "
                "first: correct it, or set None for [0, 65535]."
            )
        if self.tiff_page is not None and not 0 <= self.tiff_page <= MAX_SIZE:
            raise ValueError(f"tiff_page={self.tiff_page} is no page of a file, which are counted from 0: correct it.")
        if not all(len(color) == 3 and all(0 <= value <= 255 for value in color) for color in self.palette or ()):
            raise ValueError(
                "palette is not a list of colors [red, green, blue], integers from 0 to 255: correct or remove it."
            )

    def _validate_switches(self):
        if self.use_memory and not self.use_cross_attention:
            raise ValueError(
                "use_memory=True needs use_cross_attention=True, because only the cross-attention reads the memory: "
                "set use_memory=False (and use_grouping=False) or use_cross_attention=True."
            )
        if self.use_grouping and not self.use_memory:
            raise ValueError(
                "use_grouping=True needs use_memory=True, because grouping chooses the memory's class slot: "
                "set use_grouping=False or use_memory=True."
            )


@strict
class AllSparkConfig(AllSparkFields, SegformerConfig):
    r"""
    Configuration of [`SegformerForSemiSupervisedSegmentation`]: a [`~transformers.SegformerConfig`] with the fields of
    [`AllSparkFields`] for the bottleneck between the encoder and the decode head. With the keyword arguments of
    `plain_segformer_switches` the model is a plain SegFormer.

    Raises:
        `StrictDataclassClassValidationError`: if two settings contradict each other, or a value is out of range.

    Example:

    ```python
    >>> from allspark_hf import AllSparkConfig

    >>> config = AllSparkConfig.mit("b5", num_labels=21, crop_size=513)
    >>> config.token_grid
    (17, 17)
    ```"""

    model_type = "allspark"
    _auto_class = "AutoConfig"  # by which `save_pretrained` copies this file
    code_map = AUTO_MAP
    shape_fields = (
        *("num_labels", "hidden_sizes", "depths", "num_attention_heads", "decoder_hidden_size"),
        *AllSparkFields.shape_fields,
    )

    @classmethod
    def mit(cls, size: str, **kwargs) -> "AllSparkConfig":
        """
        The geometry of one Mix Transformer size.

        Args:
            size (`str`): `"b0"` to `"b5"`.
            kwargs: any field of the configuration; they win over the size's own values.

        Returns:
            [`AllSparkConfig`]

        Raises:
            ValueError: if `size` is none of the six.
        """
        if size not in MIT_SIZES:
            raise ValueError(f"Unknown Mix Transformer size {size!r}: choose one of {', '.join(MIT_SIZES)}.")
        hidden_sizes, depths, decoder_hidden_size = MIT_SIZES[size]
        geometry = {"hidden_sizes": hidden_sizes, "depths": depths, "decoder_hidden_size": decoder_hidden_size}
        return cls(**{**geometry, **kwargs})

    @property
    def bottleneck_channels(self) -> int:
        """Channels of the encoder's last stage."""
        return self.hidden_sizes[-1]

    @property
    def encoder_stride(self) -> int:
        """Pixels per token of the encoder's last stage, along each side."""
        return math.prod(self.strides)

    @property
    def smallest_side(self) -> int:
        """
        The fewest pixels a side that the encoder takes. It is 29 with the usual geometry: the first stage makes a map
        of a quarter of the image's size and reduces it by 8 for the keys, so the map needs 8 positions a side.
        """
        side = 1
        while not self._takes(side):
            side += 1
        return side

    def _takes(self, side: int) -> bool:
        for patch, stride, reduction in zip(self.patch_sizes, self.strides, self.sr_ratios, strict=True):
            side = (side + 2 * (patch // 2) - patch) // stride + 1  # the patch embedding, a padded convolution
            if side < reduction:
                return False
        return True

    @classmethod
    def plain_segformer_switches(cls) -> dict[str, bool]:
        """The three switches, all off: as keyword arguments they give a plain SegFormer."""
        return {"use_cross_attention": False, "use_memory": False, "use_grouping": False}

    def validate_architecture(self):
        """Refuses settings that no model can be built from; called by `@strict` after construction and on saving."""
        super().validate_architecture()
        self._validate_stages()
        self._validate_numbers()
        self._validate_fields()
        if not self.reshape_last_stage:
            raise ValueError("reshape_last_stage=False gives no feature map to the bottleneck: set it to True.")

    def _validate_stages(self):
        for name in STAGE_FIELDS:
            values = getattr(self, name)
            fits = len(values) == self.num_encoder_blocks and all(1 <= value <= MAX_SIZE for value in values)
            if not fits or not values:
                raise ValueError(
                    f"{name}={values} does not give each of num_encoder_blocks={self.num_encoder_blocks} stages a "
                    "number above 0: set as many, and at least one."
                )
        if sum(self.depths) > MAX_LAYERS:
            raise ValueError(f"depths={self.depths} are more than {MAX_LAYERS} layers: set fewer.")

    def _validate_numbers(self):
        for name in ("num_channels", "decoder_hidden_size", "num_labels"):
            if not 1 <= getattr(self, name) <= MAX_SIZE:
                raise ValueError(f"{name}={getattr(self, name)}: set it from 1 to {MAX_SIZE}.")
        for name in DROPOUT_FIELDS:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: set it in [0, 1).")
        for name in ("layer_norm_eps", "initializer_range"):
            if not 0 < getattr(self, name) < 1e6:
                raise ValueError(f"{name}={getattr(self, name)}: set a number above 0.")
        if isinstance(self.hidden_act, str) and self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act={self.hidden_act!r} is no activation of transformers: set 'gelu', say.")
