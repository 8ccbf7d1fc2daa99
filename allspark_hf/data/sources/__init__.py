"""Where images come from: an own folder, published data sets, lists of ids, the Hub, streams."""

from .classes import Classes, read_classes, write_classes
from .folder import load_folder
from .hub import find_classes, load_hub_data
from .layouts import find_layout
from .pairs import SegmentationData
from .splits import Selection, draw, fraction_to_count, load_layout, write_id_lists
from .unlabeled import add_unlabeled, open_unlabeled_stream, read_image_folder, read_unlabeled_dataset


__all__ = [
    "Classes",
    "SegmentationData",
    "Selection",
    "add_unlabeled",
    "draw",
    "find_classes",
    "find_layout",
    "fraction_to_count",
    "load_folder",
    "load_hub_data",
    "load_layout",
    "open_unlabeled_stream",
    "read_classes",
    "read_image_folder",
    "read_unlabeled_dataset",
    "write_classes",
    "write_id_lists",
]
