"""Which of the data is on disk. Nothing is decoded, except masks if the classes must be counted in them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from .loading import DataArguments, check_found, find_data
from .recognition import find_layout
from .sources.classes import Classes, read_classes
from .sources.layout import Layout
from .sources.layouts import LAYOUTS
from .sources.lists import read_lines, split_line
from .sources.pairs import SETS, SegmentationData


SHOWN_FILES = 3
T = TypeVar("T")


@dataclass
class DataPresence:
    """
    What [`look_for_data`] found.

    Args:
        problems (`list[str]`): one sentence for everything that is missing or wrong.
        counts (`dict[str, int]`): number of images of `labeled`, `unlabeled` and `validation`, as far as it is known;
            if images are missing, their number in the lists.
        classes (`Classes`, *optional*): names and colors, if they are known.
        num_labels (`int`, *optional*): the number of classes, if it is known.
        data (`SegmentationData`, *optional*): the sets, if nothing is missing.
    """

    problems: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    classes: Classes | None = None
    num_labels: int | None = None
    data: SegmentationData | None = None

    def attempt(self, act: Callable[..., T], *args) -> T | None:
        """Calls a function and returns its result; if it fails, adds the error to the problems and returns `None`."""
        try:
            return act(*args)
        except (OSError, ValueError) as error:
            self.problems.append(str(error))


def look_for_data(arguments: DataArguments, image_column: str = "image", label_column: str = "label") -> DataPresence:
    """
    Looks for the folder, the lists, the images that they name, and the classes; nothing is written. If all of these
    are there, [`find_data`] looks for the masks too. If nothing else gives the number of classes, the labeled and
    validation images are checked as in training, which counts the classes.
    """
    found = DataPresence()
    layout = None
    if arguments.data_dir is not None:
        layout = found.attempt(find_layout, arguments.data_dir, arguments.data_format, arguments.voc_masks)
    for name in SETS:
        path = getattr(arguments, f"{name}_list")
        if path is not None:
            _look_through_list(found, name, path, layout)
    if arguments.classes:
        found.classes = found.attempt(read_classes, arguments.classes)
    if not found.problems:
        found.data = found.attempt(find_data, arguments, image_column, label_column)
    if found.data is not None:
        found.counts = {name: len(dataset) for name, dataset in found.data.sets.items()}
        found.classes = found.data.classes
    found.num_labels = _num_labels(found, arguments)
    if found.num_labels is None and found.data is not None:
        masked = replace(found.data, unlabeled=found.data.unlabeled.select([]))
        report = found.attempt(check_found, masked, arguments)
        found.num_labels = None if report is None else report.num_labels
    elif found.num_labels is None:
        found.problems.append(
            "The number of classes is counted in the masks, which cannot be read yet: with --num_labels or --classes, "
            "the dry run takes its step without them."
        )
    return found


def _look_through_list(found: DataPresence, name: str, path: str, layout: Layout | None):
    """Looks only for images: a mask may lie elsewhere than the list says, and [`find_data`] finds it there."""
    lines = found.attempt(read_lines, path)
    if lines is None:
        return
    found.counts[name] = len(lines)
    split = "validation" if name == "validation" else "train"
    named = dict.fromkeys(line for _, line in lines) if layout is not None else ()
    missing = [split_line(line.strip())[0] for line in named if layout.find_image(line, split)[0] is None]
    if missing:
        shown = ", ".join(missing[:SHOWN_FILES]) + (", ..." if len(missing) > SHOWN_FILES else "")
        counts = f"{len(missing)} of the {len(lines)} images of {path}"
        found.problems.append(f"{counts} are not in {layout.root}: {shown}")


def _num_labels(found: DataPresence, arguments: DataArguments) -> int | None:
    """The number of classes as in training, by the option, the mask values or the classes, or else by the layout."""
    if arguments.num_labels is not None:
        return arguments.num_labels
    if arguments.mask_values is not None:
        return len(arguments.mask_values)
    if found.classes is not None:
        return found.classes.num_labels
    layout = LAYOUTS.get(arguments.data_format)  # published data sets have classes, even if nothing is on disk
    known = isinstance(getattr(layout, "classes", None), Classes)
    return layout.classes.num_labels if known else None
