"""Training methods, one file each: diff two of them to see the algorithm."""

from dataclasses import fields

from .allspark import AllSpark
from .allspark_unimatch import AllSparkUniMatch
from .base import Method, MethodArguments, MixedBatch, PixelCounts, StepLosses
from .fixmatch import FixMatch
from .memory_contrastive import MemoryContrastive
from .pseudo_label import PseudoLabel
from .supervised import Supervised
from .unimatch_v2 import UniMatchV2


METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "pseudo_label": PseudoLabel,
    "fixmatch": FixMatch,
    "unimatch_v2": UniMatchV2,
    "memory_contrastive": MemoryContrastive,
    "allspark": AllSpark,
    "allspark_unimatch": AllSparkUniMatch,
}


def arguments_classes() -> list[type]:
    """The dataclasses of all methods' arguments, most derived first, to be bases of one class."""
    classes = {method.arguments_class: None for method in METHODS.values()}
    return sorted(classes, key=lambda one: len(one.__mro__), reverse=True)


def arguments_of_others(method: str) -> list[str]:
    """Names of the arguments that other methods have and this one has not."""
    own = {one.name for one in fields(METHODS[method].arguments_class)}
    names = dict.fromkeys(one.name for kind in arguments_classes() for one in fields(kind))
    return [name for name in names if name not in own]


__all__ = [
    "METHODS",
    "AllSpark",
    "AllSparkUniMatch",
    "FixMatch",
    "MemoryContrastive",
    "Method",
    "MethodArguments",
    "MixedBatch",
    "PixelCounts",
    "PseudoLabel",
    "StepLosses",
    "Supervised",
    "UniMatchV2",
    "arguments_classes",
    "arguments_of_others",
]
