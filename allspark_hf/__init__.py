"""AllSpark (CVPR 2024): semi-supervised semantic segmentation for transformers."""

from importlib import import_module
from typing import TYPE_CHECKING

from .models.auto import register_at_first_lookup
from .utils import __version__


if TYPE_CHECKING:
    from .cli.train import train
    from .inference.batches import BatchSegmenter
    from .inference.segmentation import segment
    from .models.configuration_allspark import AllSparkConfig
    from .models.configuration_backbone_allspark import AllSparkBackboneConfig
    from .models.modeling_allspark import SegformerForSemiSupervisedSegmentation, SemiSupervisedSegmenterOutput
    from .models.modeling_backbone_allspark import BackboneForSemiSupervisedSegmentation
    from .training.arguments import AllSparkTrainingArguments
    from .training.trainer import AllSparkTrainer

# Imported at their first use: torch and transformers take seconds, which `allspark --help` need not wait for.
_MODULES = {
    "AllSparkBackboneConfig": "models.configuration_backbone_allspark",
    "AllSparkConfig": "models.configuration_allspark",
    "AllSparkTrainer": "training.trainer",
    "AllSparkTrainingArguments": "training.arguments",
    "BackboneForSemiSupervisedSegmentation": "models.modeling_backbone_allspark",
    "BatchSegmenter": "inference.batches",
    "SegformerForSemiSupervisedSegmentation": "models.modeling_allspark",
    "SemiSupervisedSegmenterOutput": "models.modeling_allspark",
    "register_auto_classes": "models.registration",
    "segment": "inference.segmentation",
    "train": "cli.train",
}

register_at_first_lookup()


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(".models.registration", __name__)  # makes transformers' Auto classes know the models
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


__all__ = [
    "AllSparkBackboneConfig",
    "AllSparkConfig",
    "AllSparkTrainer",
    "AllSparkTrainingArguments",
    "BackboneForSemiSupervisedSegmentation",
    "BatchSegmenter",
    "SegformerForSemiSupervisedSegmentation",
    "SemiSupervisedSegmenterOutput",
    "__version__",
    "segment",
    "train",
]
