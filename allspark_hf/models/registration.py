"""Registers the models with transformers' Auto classes, and names the code files that are saved with every model."""

import inspect
from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from .configuration_allspark import AllSparkConfig
from .configuration_backbone_allspark import AllSparkBackboneConfig
from .modeling_allspark import SegformerForSemiSupervisedSegmentation
from .modeling_backbone_allspark import BackboneForSemiSupervisedSegmentation


SEGMENTERS = {
    config_class.model_type: (config_class, model_class)
    for config_class, model_class in (
        (AllSparkConfig, SegformerForSemiSupervisedSegmentation),
        (AllSparkBackboneConfig, BackboneForSemiSupervisedSegmentation),
    )
}


def register_auto_classes() -> None:
    """
    Registers the models with transformers. Importing this module calls it, which the first use of `allspark_hf`, or of
    its models by an Auto class, does; calling it again changes nothing.

    `AutoConfig`, `AutoModel` and `AutoModelForSemanticSegmentation` then load saved folders and Hub ids without
    `trust_remote_code`. `AutoImageProcessor` needs nothing: preprocessor_config.json names SegFormer's own class.
    Saving copies the `*_allspark.py` files that a model needs beside the weights, for those who load the folder with
    `trust_remote_code=True` instead of this package. Models of `model_type` "segformer" stay transformers' own.
    """
    for config_class, model_class in SEGMENTERS.values():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
            auto_class.register(config_class, model_class, exist_ok=True)


def segmenter_classes(config: dict | None, name: str | Path) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """
    The configuration and the model class of a saved model.

    Args:
        config (`dict`, *optional*): the content of its config.json.
        name (`str` or `Path`): of that file, for the error.

    Raises:
        ValueError: if it is none of this package's models.
    """
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in SEGMENTERS:
        raise ValueError(
            f"{name} describes a model of type {kind!r}, not {' or '.join(map(repr, SEGMENTERS))}: give the output "
            "folder of this package's training."
        )
    return SEGMENTERS[kind]


def auto_map_of(config_class: type[PreTrainedConfig]) -> dict[str, str]:
    """What config.json names for `trust_remote_code=True`, the `AUTO_MAP` beside a configuration class."""
    return dict(inspect.getmodule(config_class).AUTO_MAP)


def code_files(model_class: type[PreTrainedModel]) -> list[Path]:
    """The files that a saved model of this class carries for `trust_remote_code=True`, its own first."""
    own = inspect.getfile(model_class)
    return [Path(own), *sorted({Path(path) for path in get_relative_import_files(own)})]


register_auto_classes()
