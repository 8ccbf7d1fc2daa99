"""AllSpark (CVPR 2024): semi-supervised semantic segmentation for transformers."""

from .inference.segmentation import segment
from .models.configuration_allspark import AllSparkConfig
from .models.configuration_backbone_allspark import AllSparkBackboneConfig
from .models.modeling_allspark import SegformerForSemiSupervisedSegmentation, SemiSupervisedSegmenterOutput
from .models.modeling_backbone_allspark import BackboneForSemiSupervisedSegmentation
from .models.registration import register_auto_classes
from .training.arguments import AllSparkTrainingArguments
from .training.trainer import AllSparkTrainer
from .utils import __version__


register_auto_classes()

__all__ = [
    "AllSparkBackboneConfig",
    "AllSparkConfig",
    "AllSparkTrainer",
    "AllSparkTrainingArguments",
    "BackboneForSemiSupervisedSegmentation",
    "SegformerForSemiSupervisedSegmentation",
    "SemiSupervisedSegmenterOutput",
    "__version__",
    "segment",
]
