"""Data of one's own: reading, splitting and checking images and masks."""

from .checks import BadDataError, CheckReport, MaskValueTransform, check_data
from .classes import Classes, read_classes, write_classes
from .folder import SegmentationData, draw, fraction_to_count, load_folder, write_id_lists
from .images import map_mask_values, mask_to_array, to_rgb
from .loading import DataArguments, find_data, load_data, with_class_indices
from .overlap import find_overlap


__all__ = [
    "BadDataError",
    "CheckReport",
    "Classes",
    "DataArguments",
    "MaskValueTransform",
    "SegmentationData",
    "check_data",
    "draw",
    "find_data",
    "find_overlap",
    "fraction_to_count",
    "load_data",
    "load_folder",
    "map_mask_values",
    "mask_to_array",
    "read_classes",
    "to_rgb",
    "with_class_indices",
    "write_classes",
    "write_id_lists",
]
