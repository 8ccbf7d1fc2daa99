"""What of the data is on disk, told without decoding any of it."""

from dataclasses import dataclass, field
from pathlib import Path

from .classes import Classes, read_classes
from .folder import SegmentationData
from .loading import DataArguments, find_data


LISTS = ("labeled_list", "unlabeled_list", "validation_list")
# Of the published data sets, whose number of classes is known even where nothing of them is on disk.
LAYOUT_CLASSES = {"voc": 21, "cityscapes": 19, "coco": 81}
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
    root = Path(arguments.data_dir)
    if not root.is_dir():
        found.problems.append(f"There is no folder {root} (data_dir).")
    for name in LISTS:
        path = getattr(arguments, name, None)
        if path is not None:
            _look_through_list(found, name, Path(path), root)
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


def _look_through_list(found: DataPresence, name: str, path: Path, root: Path) -> None:
    if not path.is_file():
        found.problems.append(f"There is no list {path} ({name}).")
        return
    lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    found.counts[name.removesuffix("_list")] = len(lines)
    if not root.is_dir():
        return
    # Where masks and the images of bare ids lie is for find_data to say: lists may name masks that lie elsewhere.
    images = [line[0] for line in lines if "/" in line[0]]
    missing = [image for image in images if not (root / image).is_file()]
    if missing:
        shown = ", ".join(missing[:SHOWN_FILES]) + (", ..." if len(missing) > SHOWN_FILES else "")
        found.problems.append(f"{len(missing)} of the {len(lines)} images of {path} are not in {root}: {shown}")


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
    return LAYOUT_CLASSES.get(getattr(arguments, "data_format", None))


__all__ = ["LAYOUT_CLASSES", "LISTS", "DataPresence", "look_for_data"]
