"""Data, one's own and published: reading, splitting and checking images and masks; batches to train on."""

from .checks import BadDataError, CheckReport, check_data
from .images import map_mask_values, mask_to_array, to_rgb
from .loading import DataArguments, find_data, list_path, load_data, split_of_run, with_class_indices
from .masks import MaskValueTransform
from .overlap import find_overlap
from .sources import (
    Classes,
    SegmentationData,
    Selection,
    add_unlabeled,
    draw,
    find_classes,
    find_layout,
    fraction_to_count,
    load_folder,
    load_hub_data,
    load_layout,
    open_unlabeled_stream,
    read_classes,
    read_image_folder,
    read_unlabeled_dataset,
    write_classes,
    write_id_lists,
)
from .streaming import StreamReader


__all__ = [
    "BadDataError",
    "CheckReport",
    "Classes",
    "DataArguments",
    "MaskValueTransform",
    "SegmentationData",
    "Selection",
    "StreamReader",
    "add_unlabeled",
    "check_data",
    "draw",
    "find_classes",
    "find_data",
    "find_layout",
    "find_overlap",
    "fraction_to_count",
    "list_path",
    "load_data",
    "load_folder",
    "load_hub_data",
    "load_layout",
    "map_mask_values",
    "mask_to_array",
    "open_unlabeled_stream",
    "read_classes",
    "read_image_folder",
    "read_unlabeled_dataset",
    "split_of_run",
    "to_rgb",
    "with_class_indices",
    "write_classes",
    "write_id_lists",
]
