"""What of the data is on disk, told without decoding any of it."""

from dataclasses import dataclass, field
from pathlib import Path

from .sources.classes import Classes, read_classes
from .sources.layouts import CityscapesLayout, CocoLayout, VocLayout, find_layout
from .sources.lists import is_file, read_lines, split_line
from .sources.loading import DataArguments, find_data
from .sources.pairs import Layout, SegmentationData


LISTS = {"labeled_list": "train", "unlabeled_list": "train", "validation_list": "validation"}
# Of the published data sets, whose classes are known even where nothing of them is on disk.
PUBLISHED = {layout.name: layout.classes for layout in (VocLayout, CityscapesLayout, CocoLayout)}
SHOWN_FILES = 3


@dataclass
class DataPresence:
    """
    What [`look_for_data`] found.

    Args:
        problems (`list[str]`): one sentence for everything that is missing or wrong.
        counts (`dict[str, int]`):
            Images of `labeled`, `unlabeled` and `validation`, from the lists where the images are missing; without
            the sets that nothing is known of.
        classes (`Classes`, *optional*): names and colours, where they are known.
        num_labels (`int`, *optional*): the number of classes, where it is known.
        data (`SegmentationData`, *optional*): the sets, if nothing is missing.
    """

    problems: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    classes: Classes | None = None
    num_labels: int | None = None
    data: SegmentationData | None = None


def look_for_data(arguments: DataArguments) -> DataPresence:
    """
    Looks for the folder, the lists, the images that they name, and the classes; nothing is decoded or written. Where
    all that is there, [`find_data`] has the last word, masks included.

    Args:
        arguments ([`DataArguments`]): which data.

    Returns:
        [`DataPresence`]
    """
    found = DataPresence()
    layout = None
    if arguments.data_dir is not None:
        try:
            layout = find_layout(arguments.data_dir, arguments.data_format, arguments.voc_masks)
        except (OSError, ValueError) as error:
            found.problems.append(str(error))
    for name in LISTS:
        path = getattr(arguments, name)
        if path is not None:
            _look_through_list(found, name, Path(path), layout)
    if arguments.classes and not Path(arguments.classes).is_file():
        found.problems.append(f"There is no file {arguments.classes} (classes).")
    elif arguments.classes:
        found.classes = read_classes(arguments.classes)
    if not found.problems:
        _find_sets(found, arguments)
    found.num_labels = _num_labels(found, arguments)
    if found.num_labels is None:
        found.problems.append(
            "The number of classes is not known before every mask is read: give --num_labels or --classes."
        )
    return found


def _look_through_list(found: DataPresence, name: str, path: Path, layout: Layout | None) -> None:
    if not path.is_file():
        found.problems.append(f"There is no list {path} ({name}).")
        return
    # Only images: a mask may lie elsewhere than a list says, which is for find_data to find out.
    try:
        lines = [line for _, line in read_lines(path)]
    except ValueError as error:
        found.problems.append(str(error))
        return
    images = {line: split_line(line.strip())[0] for line in lines}
    found.counts[name.removesuffix("_list")] = len(lines)
    if layout is None:
        return
    missing = [
        image
        for line, image in images.items()
        if not is_file(layout.root / image)
        and not any(is_file(layout.image_of(given, LISTS[name])) for given in (line, image))
    ]
    if missing:
        shown = ", ".join(missing[:SHOWN_FILES]) + (", ..." if len(missing) > SHOWN_FILES else "")
        counts = f"{len(missing)} of the {len(lines)} images of {path}"
        found.problems.append(f"{counts} are not in {layout.root}: {shown}")


def _find_sets(found: DataPresence, arguments: DataArguments) -> None:
    try:
        found.data = find_data(arguments)
    except (OSError, ValueError) as error:
        found.problems.append(str(error))
        return
    found.counts = {name: len(getattr(found.data, name)) for name in ("labeled", "unlabeled", "validation")}
    found.classes = found.data.classes


def _num_labels(found: DataPresence, arguments: DataArguments) -> int | None:
    """As in training: the option, the mask values, the classes; else what the layout is known to have."""
    if arguments.num_labels is not None:
        return arguments.num_labels
    if arguments.mask_values is not None:
        return len(arguments.mask_values)
    if found.classes is not None:
        return found.classes.num_labels
    published = PUBLISHED.get(arguments.data_format)
    return None if published is None else published.num_labels


__all__ = ["LISTS", "DataPresence", "look_for_data"]
