"""AllSpark (CVPR 2024): semi-supervised semantic segmentation for transformers."""

from .configuration_allspark import AllSparkConfig
from .modeling_allspark import SegformerForSemiSupervisedSegmentation, SemiSupervisedSegmenterOutput
from .segmentation import segment
from .trainer import AllSparkTrainer
from .training_args import AllSparkTrainingArguments


__version__ = "0.1.0"

__all__ = [
    "AllSparkConfig",
    "AllSparkTrainer",
    "AllSparkTrainingArguments",
    "SegformerForSemiSupervisedSegmentation",
    "SemiSupervisedSegmenterOutput",
    "segment",
]
