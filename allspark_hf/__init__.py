"""AllSpark (CVPR 2024): semi-supervised semantic segmentation for transformers."""

from .auto_classes import register_auto_classes
from .configuration_allspark import AllSparkConfig
from .modeling_allspark import SegformerForSemiSupervisedSegmentation, SemiSupervisedSegmenterOutput
from .trainer import AllSparkTrainer
from .training_args import AllSparkTrainingArguments


register_auto_classes()

__version__ = "0.1.0"

__all__ = [
    "AllSparkConfig",
    "AllSparkTrainer",
    "AllSparkTrainingArguments",
    "SegformerForSemiSupervisedSegmentation",
    "SemiSupervisedSegmenterOutput",
]
