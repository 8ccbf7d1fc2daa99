"""Data, one's own and published: reading, splitting and checking images and masks; batches to train on."""

from .checks import BadDataError, CheckReport, check_data
from .images import mask_to_array
from .loading import (
    DataArguments,
    find_data,
    list_path,
    load_data,
    split_of_run,
    with_class_indices,
    with_page_of,
)
from .overlap import find_overlap
from .pixels import Reading, open_image, to_rgb
from .recognition import find_layout
from .sources.classes import Classes, read_classes, write_classes
from .sources.hub import find_classes
from .sources.pairs import SegmentationData
from .sources.splits import Selection, draw, fraction_to_count, write_id_lists
from .sources.unlabeled import open_unlabeled_stream, read_image_folder


__all__ = [
    "BadDataError",
    "CheckReport",
    "Classes",
    "DataArguments",
    "Reading",
    "SegmentationData",
    "Selection",
    "check_data",
    "draw",
    "find_classes",
    "find_data",
    "find_layout",
    "find_overlap",
    "fraction_to_count",
    "list_path",
    "load_data",
    "mask_to_array",
    "open_image",
    "open_unlabeled_stream",
    "read_classes",
    "read_image_folder",
    "split_of_run",
    "to_rgb",
    "with_class_indices",
    "with_page_of",
    "write_classes",
    "write_id_lists",
]
