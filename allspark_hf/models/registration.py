"""Registers the model with transformers' Auto classes, and its code files to be saved with every model."""

from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation

from .configuration_allspark import AllSparkConfig
from .modeling_allspark import SegformerForSemiSupervisedSegmentation


__all__ = ["register_auto_classes"]


def register_auto_classes() -> None:
    """
    Registers the model with transformers. `import allspark_hf` calls it; calling it again changes nothing.

    `AutoConfig`, `AutoModel` and `AutoModelForSemanticSegmentation` then load saved folders and Hub ids without
    `trust_remote_code`. `AutoImageProcessor` needs nothing: preprocessor_config.json names SegFormer's own class.
    Saving copies the `*_allspark.py` files beside the weights, for those who load the folder with
    `trust_remote_code=True` instead of this package. Models of `model_type` "segformer" stay transformers' own.
    """
    AutoConfig.register(AllSparkConfig.model_type, AllSparkConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
        auto_class.register(AllSparkConfig, SegformerForSemiSupervisedSegmentation, exist_ok=True)
    # `save_pretrained` copies a class's file only if the class is marked with an Auto class.
    AllSparkConfig.register_for_auto_class()
    SegformerForSemiSupervisedSegmentation.register_for_auto_class(AutoModelForSemanticSegmentation)
