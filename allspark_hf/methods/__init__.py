"""Training methods, one file each: diff two of them to see the algorithm."""

from .allspark import AllSpark
from .base import Method, MixedBatch, PixelCounts, StepLosses
from .pseudo_label import PseudoLabel
from .supervised import Supervised


METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "pseudo_label": PseudoLabel,
    "allspark": AllSpark,
}

__all__ = ["METHODS", "AllSpark", "Method", "MixedBatch", "PixelCounts", "PseudoLabel", "StepLosses", "Supervised"]
