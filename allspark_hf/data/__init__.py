"""Data, one's own and published: reading, splitting and checking images and masks."""

from .checks import BadDataError, CheckReport, MaskValueTransform, check_data
from .classes import Classes, read_classes, write_classes
from .folder import load_folder
from .images import map_mask_values, mask_to_array, to_rgb
from .layouts import find_layout
from .loading import DataArguments, find_data, load_data
from .overlap import find_overlap
from .pairs import SegmentationData
from .splits import Selection, draw, fraction_to_count, load_layout, write_id_lists


__all__ = [
    "BadDataError",
    "CheckReport",
    "Classes",
    "DataArguments",
    "MaskValueTransform",
    "SegmentationData",
    "Selection",
    "check_data",
    "draw",
    "find_data",
    "find_layout",
    "find_overlap",
    "fraction_to_count",
    "load_data",
    "load_folder",
    "load_layout",
    "map_mask_values",
    "mask_to_array",
    "read_classes",
    "to_rgb",
    "write_classes",
    "write_id_lists",
]
