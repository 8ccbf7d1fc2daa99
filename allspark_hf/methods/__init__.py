"""Training methods, one file each: diff two of them to see the algorithm."""

from .allspark import AllSpark
from .base import Method, MethodArguments, MixedBatch, PixelCounts, StepLosses
from .pseudo_label import PseudoLabel
from .supervised import Supervised


METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "pseudo_label": PseudoLabel,
    "allspark": AllSpark,
}


def arguments_classes() -> list[type]:
    """The dataclasses of all methods' arguments, most derived first, to be bases of one class."""
    classes = {method.arguments_class: None for method in METHODS.values()}
    return sorted(classes, key=lambda one: len(one.__mro__), reverse=True)


__all__ = [
    "METHODS",
    "AllSpark",
    "Method",
    "MethodArguments",
    "MixedBatch",
    "PixelCounts",
    "PseudoLabel",
    "StepLosses",
    "Supervised",
    "arguments_classes",
]
