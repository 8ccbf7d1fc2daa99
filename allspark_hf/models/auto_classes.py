"""What `import allspark_hf` adds to transformers: its Auto classes know the model, saved folders carry its code."""

from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation

from .configuration_allspark import AllSparkConfig
from .modeling_allspark import SegformerForSemiSupervisedSegmentation


__all__ = ["register_auto_classes"]


def register_auto_classes() -> None:
    """
    Registers the model with transformers; called on `import allspark_hf`, and harmless when called again.

    `AutoConfig`, `AutoModel` and `AutoModelForSemanticSegmentation` then load saved folders and Hub ids without
    `trust_remote_code`. `AutoImageProcessor` needs nothing: preprocessor_config.json names SegFormer's own class.
    Saving copies configuration_allspark.py and modeling_allspark.py beside the weights, for those who load them with
    `trust_remote_code=True` instead of this package. Models of `model_type` "segformer" are left alone.
    """
    AutoConfig.register(AllSparkConfig.model_type, AllSparkConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
        auto_class.register(AllSparkConfig, SegformerForSemiSupervisedSegmentation, exist_ok=True)
    # Each class remembers one Auto class only, whose mark is what makes `save_pretrained` copy its file.
    AllSparkConfig.register_for_auto_class()
    SegformerForSemiSupervisedSegmentation.register_for_auto_class(AutoModelForSemanticSegmentation)
