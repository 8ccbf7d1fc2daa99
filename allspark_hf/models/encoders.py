"""Encoders by name: from a Hub id, a folder or a model type of transformers to a segmenter with their weights."""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from ..utils.text import one_line
from .configuration_backbone_allspark import AllSparkBackboneConfig, check_has_backbone, default_out_indices
from .configuration_backbone_allspark import encoder_shape as shape_of
from .modeling_backbone_allspark import BackboneForSemiSupervisedSegmentation
from .pretrained import check_reachable, loading


logger = logging.getLogger(__name__)

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
BLUE_FIRST = ("PPLCNet", "UVDoc")  # processors of transformers that reverse the colors and have no option for it
# transformers adds these norms to the maps that it returns: no checkpoint has them, and they start as the identity.
ADDED_NORMS = re.compile(r"(.*\.)?hidden_states_norms\.")


def is_model_type(name: str) -> bool:
    """Whether a name is a model type of transformers, such as `"dinov2"`, rather than weights."""
    return name in CONFIG_MAPPING and not Path(name).is_dir()


def encoder_config(name: str) -> PreTrainedConfig:
    """
    The configuration of an encoder.

    Args:
        name (`str`): Hub id, local folder, or model type of transformers, which has a default geometry.

    Raises:
        ValueError: if it cannot be read. Whether transformers has a Backbone class of its type is not looked at.
    """
    if is_model_type(name):
        return CONFIG_MAPPING[name]()
    is_path = name.startswith(("/", ".", "~")) or name.count("/") > 1  # no name on the Hub
    if is_path and not Path(name).is_dir():
        raise ValueError(f"There is no folder {name!r} with an encoder: correct the path, or give a Hub id.")
    check_reachable(name)
    with _told_in_a_sentence(name):
        return AutoConfig.from_pretrained(name)


def load_encoder(
    name: str, attn_implementation: str | None = None, encoder_fields: dict | None = None, **fields
) -> BackboneForSemiSupervisedSegmentation:
    """
    A segmenter with the weights of a pre-trained encoder and a new head.

    Args:
        name (`str`):
            Hub id or local folder of the encoder, with or without the head of another task; or a model type of
            transformers, whose encoder then starts at random.
        attn_implementation (`str`, *optional*): attention of the encoder, `"sdpa"` or `"eager"`.
        encoder_fields (`dict`, *optional*): fields of the encoder's configuration to change, such as `out_indices`.
        fields: of [`AllSparkBackboneConfig`].

    Raises:
        ValueError: if the encoder cannot be read or used, or if one of its weights is missing or left over.
    """
    encoder = encoder_config(name)
    check_has_backbone(encoder)
    encoder.out_indices = default_out_indices(encoder)
    for field, value in (encoder_fields or {}).items():
        if not hasattr(encoder, field):
            raise ValueError(f"The encoder {name!r} has no {field}: leave it out.")
        setattr(encoder, field, value)
    config = AllSparkBackboneConfig(backbone_config=encoder, **fields)
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    model = BackboneForSemiSupervisedSegmentation(config)
    if not is_model_type(name):
        config._name_or_path = name  # from which trainings find out what they started from
        model.backbone.load_state_dict(_pretrained_backbone(name, config.backbone_config).state_dict())
    return model


def _pretrained_backbone(name: str, config: PreTrainedConfig):
    """
    The encoder loaded by its own class and not as a part of the segmenter: otherwise transformers does not rename the
    weights of every encoder, and DINOv3's layer scales would stay random. AutoBackbone cannot read folders.
    """
    with _told_in_a_sentence(name):
        backbone, info = MODEL_FOR_BACKBONE_MAPPING[type(config)].from_pretrained(
            name, config=config, output_loading_info=True
        )
    unread = shape_of(config).unused
    missing = sorted(key for key in info["missing_keys"] if key not in unread and not ADDED_NORMS.match(key))
    if missing:
        raise ValueError(
            f"{name!r} has no weights for {len(missing)} parameters of the encoder (first: {missing[0]}), which would "
            "stay random: get the checkpoint again, or choose another."
        )
    own = tuple(f"{part}." for part, _ in backbone.named_children())
    left_over = sorted(key for key in info["unexpected_keys"] if key.startswith(own) and key not in unread)
    if left_over:
        raise ValueError(
            f"{len(left_over)} weights of {name!r} (first: {left_over[0]}) have no place in the encoder that its "
            "config.json describes: get the checkpoint again, or choose another."
        )
    return backbone


def encoder_normalization(name: str) -> dict[str, list[float]]:
    """
    `image_mean` and `image_std`, for values of 0 to 1, that an encoder was trained with, from its own image processor;
    ImageNet's, with a warning, if weights come without one.

    Args:
        name (`str`): Hub id, local folder, or model type of transformers.

    Raises:
        ValueError: if the encoder reads the colors as blue, green, red.
    """
    if is_model_type(name):
        return dict(IMAGENET)
    try:
        stored, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        logger.warning(
            "%r has no preprocessor_config.json that can be read, so images are normalized with ImageNet's mean and "
            "standard deviation: add the file if the encoder was trained with others.",
            name,
        )
        return dict(IMAGENET)
    if stored.get("do_flip_channel_order") or str(stored.get("image_processor_type")).startswith(BLUE_FIRST):
        raise ValueError(f"{name!r} was trained on colors in the order blue, green, red: choose another encoder.")
    mean, std = (list(stored.get(field) or value) for field, value in IMAGENET.items())
    if stored.get("do_normalize") is False:
        mean, std = [0.0] * 3, [1.0] * 3
    factor = stored.get("rescale_factor") or 1 / 255
    white = 255 * (1 if stored.get("do_rescale") is False else factor)  # what the encoder's processor makes of 255
    if not math.isclose(white, 1):
        mean, std = ([value / white for value in values] for values in (mean, std))
    return {"image_mean": mean, "image_std": std}


@contextmanager
def _told_in_a_sentence(name: str) -> Iterator[None]:
    try:
        with loading(name, keep=(OSError,)):
            yield
    except OSError as error:
        if "gated" in str(error).lower():
            raise ValueError(
                f"The weights of {name!r} are gated: ask for access on https://huggingface.co/{name} and log in (hf "
                "auth login), or take an encoder without a gate, such as facebook/dinov2-small."
            ) from error
        raise ValueError(f"The encoder {name!r} cannot be loaded: {one_line(error)}") from error
