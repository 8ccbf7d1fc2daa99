"""The check of all data before the first training step."""

import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import PIL.Image
from datasets import Dataset
from tqdm.auto import tqdm

from ..utils.text import one_line
from .columns import Mask, Picture, page_of
from .images import mask_to_array, palette_of_values
from .masks import CONVERT_OBJECTS, MANY_VALUES, MAX_NUM_LABELS, MaskConvention, values_in_mask
from .palettes import warn_of_palettes
from .pixels import PLAIN, ImageError, Reading, deep_values, say_again, to_rgb
from .reading import row_name, undecoded
from .sources.pairs import SegmentationData
from .summary import describe_binary_masks, file_of, find_image_range, remember, stored_values, value_range


logger = logging.getLogger(__name__)

SHOWN_PROBLEMS = 10
KIND_LENGTH = 16  # problems of one kind begin with the same characters, digits aside
WITH_MASKS = ("labeled", "validation")


class BadDataError(ValueError):
    """
    Data that cannot be trained on.

    Args:
        message (`str`): what is wrong and what to do.
        problems (`list[str]`, *optional*): one sentence per bad file.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()):
        super().__init__(message)
        self.problems = list(problems)


@dataclass
class CheckReport:
    """
    The outcome of [`check_data`].

    Args:
        data (`SegmentationData`): the data to train on: without the files left out, and with class indices in `label`
            where mask values were given.
        num_labels (`int`): the number of classes.
        values (`list[int]`): the classes that occur in the masks, ascending, without the ignore index.
        left_out (`list[str]`): one sentence per row left out; empty unless `skip_bad_files` was given.
        found (`SegmentationData`, *optional*): the data that was checked, with the files left out.
        reading ([`Reading`]): how the images are read, for the configuration of a model; its `image_range` is `None`
            where no image has 16 bits, or where they use all of these.
    """

    data: SegmentationData
    num_labels: int
    values: list[int]
    left_out: list[str] = field(default_factory=list)
    found: SegmentationData | None = None
    reading: Reading = PLAIN


@dataclass
class _Row:
    """What was found in one row."""

    values: frozenset[int] = frozenset()  # classes in the mask, and the ignore index
    stored: frozenset[int] | None = None  # values in the mask as they are stored
    size: tuple[int, int] | None = None  # (width, height) of the image
    wrong: dict[str, list[str]] = field(default_factory=dict)  # column -> sentences
    problem: str | None = None  # these sentences, with the names of the files
    image_range: tuple[int, int] | None = None  # of a 16-bit image
    colors: dict[tuple[int, ...], int] = field(default_factory=dict)  # palette_of_values of the mask
    turned_alone: bool = False  # EXIF turns the image and not the mask, and the sizes agree all the same


def check_data(
    data: SegmentationData,
    num_labels: int | None = None,
    ignore_index: int = 255,
    mask_values: Sequence[int] | None = None,
    skip_bad_files: bool = False,
    ignored_mask_values: Sequence[int] | None = None,
) -> CheckReport:
    """
    Decodes every image and every mask once, and reports everything that is wrong with them before training starts.

    The check finds files that cannot be read, masks whose size differs from that of their image (both upright), masks
    with colors, numbers of objects or 0 and 255 instead of class indices, values that are no class, and empty sets.
    Wrap data sets that are not from a folder first: `SegmentationData(labeled, unlabeled, validation)`.

    Args:
        data (`SegmentationData`): the sets; `labeled` and `validation` need the columns `image` and `label`,
            `unlabeled` needs `image`. Without a column `id`, files are named by path or row number.
        num_labels (`int`, *optional*): the number of classes. `None` takes the number of `mask_values`, else of
            `data.classes`, else the largest value in the masks plus one.
        ignore_index (`int`, *optional*, defaults to 255): the value of pixels without a class.
        mask_values (`Sequence[int]`, *optional*): the value stored for class 0, for class 1 and so on, where the masks
            do not hold class indices; the data sets returned give class indices. `None` takes those of `data`.
        skip_bad_files (`bool`, *optional*, defaults to `False`): leave bad rows out instead of raising an error.
        ignored_mask_values (`Sequence[int]`, *optional*): further stored values that do not count; they become the
            ignore index. `None` takes those of `data`, unless `mask_values` is given.

    Returns:
        `CheckReport`: the data to train on, the number of classes and what was left out.

    Raises:
        BadDataError: if files are bad (the message lists the first 10 and the total), the labeled or validation set is
            empty, no mask has a pixel of a class, or all masks hold only 0 and 255 or number objects. A `ValueError`.
        ValueError: if a column is missing, or options contradict each other.
    """
    say_again()
    found, transform = data, data.mask_transform(ignore_index, mask_values, ignored_mask_values)
    _require_no_transform(data, transform)
    num_labels = _known_num_labels(data, num_labels, transform)
    _require_rows(data, "there is nothing to train on or to validate with; add images with masks")
    rows = {name: _check_set(dataset, name, num_labels, transform) for name, dataset in data.sets.items()}
    if num_labels is None:
        _refuse_numbered_objects(data, rows, transform)
    problems = [row.problem for checked in rows.values() for row in checked if row.problem]
    if problems:
        good = {
            name: [index for index, row in enumerate(checked) if not row.problem] for name, checked in rows.items()
        }
        data = replace(data, **{name: dataset.select(good[name]) for name, dataset in data.sets.items()})
        if data.hidden_ids:
            left = set(data.unlabeled["id"])
            data = replace(data, hidden_ids=[name for name in data.hidden_ids if name in left])
    for name, dataset in data.sets.items():
        _remember_rows(dataset, rows[name])
    if problems and not skip_bad_files:
        of_all = _problem_of_all(data, rows, num_labels, transform)
        raise BadDataError(_describe_problems(rows) + of_all, problems)
    if problems:
        _require_rows(data, f"all its files were left out; the first problem: {problems[0]}")
    values = _check_all_values(data, rows, num_labels, transform)
    if num_labels is None:
        num_labels = _infer_num_labels(values)
        _check_num_labels(num_labels, transform, inferred=True)
    if transform.maps:
        mapped = {name: dataset.with_transform(transform) for name, dataset in data.sets.items()}
        data = replace(data, **mapped, mask_values=None, ignored_mask_values=None)
        for name, dataset in data.sets.items():
            _remember_rows(dataset, rows[name])
    _warn_of_turned_images(found, rows)
    warn_of_palettes(found, {name: [one.colors for one in rows[name]] for name in WITH_MASKS}, transform)
    reading = Reading(find_image_range(data.sets.values()), page_of(data.labeled))
    return CheckReport(data, num_labels, values, left_out=problems, found=found, reading=reading)


def _warn_of_turned_images(found: SegmentationData, rows: dict[str, list[_Row]]):
    turned = [(name, row) for name, checked in rows.items() for row, one in enumerate(checked) if one.turned_alone]
    if turned:
        dataset, row = found.sets[turned[0][0]], turned[0][1]
        name = row_name(dataset, row, undecoded(dataset, "image")[row]["image"])
        logger.warning(
            "EXIF orientation turns %d images (first %s) and not their masks, and the sizes cannot tell whether that "
            "is right: make sure that the masks were drawn on the upright image, as a viewer shows it.",
            *(len(turned), name),
        )


def _remember_rows(dataset: Dataset, rows: list[_Row]):
    """Keeps what was found, so that the trainer does not read the files again."""
    rows = [row for row in rows if not row.problem]
    remember(dataset, *([getattr(row, name) for row in rows] for name in ("size", "stored", "image_range")))


def _require_no_transform(data: SegmentationData, transform: MaskConvention):
    for name in WITH_MASKS:
        form = data.sets[name].format["type"]
        if transform.maps and form is not None:
            raise ValueError(
                f"The {name} set has the format or transform {form!r}, which the mapping of mask values would "
                "replace; set it after check_data."
            )


def _known_num_labels(data: SegmentationData, num_labels: int | None, transform: MaskConvention) -> int | None:
    sources = {"num_labels": num_labels}
    if transform.mask_values is not None:
        sources["the list of mask values"] = len(transform.mask_values)
    if data.classes is not None:
        sources["the list of classes"] = data.classes.num_labels
    known = {name: count for name, count in sources.items() if count is not None}
    if len(set(known.values())) > 1:
        counts = " and ".join(f"{count} from {name}" for name, count in known.items())
        raise ValueError(f"The numbers of classes differ: {counts}; make them agree.")
    count = next(iter(known.values()), None)
    if count is not None and count < 1:
        raise ValueError(f"num_labels is {count}, but there must be at least 1 class.")
    if count is not None:
        _check_num_labels(count, transform)
    return count


def _check_num_labels(num_labels: int, transform: MaskConvention, inferred: bool = False):
    if num_labels > MAX_NUM_LABELS and not inferred:  # a number counted in the masks may be that of a stray value
        raise ValueError(
            f"There are {num_labels} classes, but a training has at most {MAX_NUM_LABELS}, since it keeps masks in 8 "
            "bits: merge classes in the masks."
        )
    ignore_index = transform.ignore_index
    if 0 <= ignore_index < num_labels:
        # A number counted in the masks includes the ignored value; one that the user gives hardly does.
        count = num_labels if inferred or transform.mask_values is not None else num_labels + 1
        stored = [str(value) for value in range(count) if value != ignore_index]
        stored = stored[:3] + ["..."] * (len(stored) > 3)
        raise ValueError(
            f"The ignore index {ignore_index} is also one of the classes 0 to {num_labels - 1}; leave --ignore_index "
            "out, and list the stored value of each class and what does not count: --mask_values "
            f"{' '.join(stored)} --ignored_mask_values {ignore_index}."
        )
    clash = [value for value in transform.ignored_mask_values if 0 <= value < num_labels]
    if transform.mask_values is None and clash:
        raise ValueError(
            f"ignored_mask_values names {clash[0]}, which is also one of the classes 0 to {num_labels - 1}; list the "
            "stored value of each class with --mask_values."
        )


def _require_rows(data: SegmentationData, reason: str):
    for name in WITH_MASKS:
        if len(data.sets[name]) == 0:
            raise BadDataError(f"The {name} set is empty: {reason}.")


def _check_set(dataset: Dataset, title: str, num_labels: int | None, transform: MaskConvention) -> list[_Row]:
    if len(dataset) == 0:
        return []
    hidden = title == "unlabeled" and "label" in dataset.column_names
    names = ("image", "label") if title in WITH_MASKS or hidden else ("image",)
    columns = {name: undecoded(dataset, name) for name in names}
    find_values = partial(values_in_mask, num_labels=num_labels, convention=transform)
    features = {"image": Picture(tiff_page=page_of(dataset)), "label": Mask()}

    def check(row: int) -> _Row:
        stored = {name: rows[row][name] for name, rows in columns.items()}
        if hidden and stored["label"] is None:
            del stored["label"]
        found = _check_row(stored, features, find_values)
        said = []
        for column, sentences in found.wrong.items():
            path = (stored[column] or {}).get("path")
            where = path or f"The {column} of {title} row {row_name(dataset, row, stored['image'])}"
            said.append(f"{where}: {' '.join(sentences)}")
        return replace(found, problem=" ".join(said) or None)

    # Pillow decodes without holding the interpreter lock, so threads are enough.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(check, range(len(dataset))), desc=f"Checking {title}", total=len(dataset), disable=None)
        return list(bar)


def _check_row(stored: dict, features: dict[str, Picture], find_values) -> _Row:
    sizes, orientations, image_range, wrong = {}, {}, None, {}
    values, stored_in_mask, colors = frozenset(), None, {}
    for column, content in stored.items():
        try:
            picture = _decode(content, features[column])
            orientations[column] = getattr(picture, "orientation", 1)
            if column == "image":
                sizes[column] = to_rgb(picture).size
                values_of_16_bits = deep_values(picture)
                image_range = None if values_of_16_bits is None else value_range(values_of_16_bits)
            else:
                array = mask_to_array(picture)
                sizes[column] = array.shape[::-1]
                stored_in_mask = stored_values(array)
                values = find_values(stored_in_mask)
                colors = palette_of_values(picture, stored_in_mask)
        except ValueError as error:
            wrong[column] = [str(error)]
    if len(set(sizes.values())) > 1:
        (image_width, image_height), (width, height) = sizes["image"], sizes["label"]
        wrong.setdefault("label", []).append(
            f"The mask is {width} x {height} pixels (width x height), but its image is {image_width} x "
            f"{image_height} once upright; export the mask at the size of the image."
        )
    stored = None if stored_in_mask is None else frozenset(stored_in_mask.tolist())
    if wrong:
        return _Row(stored=stored, wrong=wrong)
    width, height = sizes["image"]
    may_be_turned = orientations["image"] in (2, 3, 4) or (width == height and orientations["image"] != 1)
    turned_alone = may_be_turned and orientations.get("label") == 1
    return _Row(values, stored, sizes["image"], image_range=image_range, colors=colors, turned_alone=turned_alone)


def _decode(content: dict | None, feature: Picture) -> PIL.Image.Image:
    if content is None:
        raise ValueError("The entry is empty; give it a file or remove the row.")
    try:
        return feature.decode_example(content)
    except ImageError:
        raise
    # Broken files make Pillow raise nearly anything, among others SyntaxError and struct.error.
    except Exception as error:
        raise ValueError(f"The file cannot be read ({one_line(error)}); replace or remove it.") from error


def _refuse_numbered_objects(data: SegmentationData, rows: dict[str, list[_Row]], transform: MaskConvention):
    """Raises [`BadDataError`] if the values of no mask have a gap, and they do not end at one number in all masks."""
    ignored = {transform.ignore_index, *transform.ignored_mask_values}
    masks = {(name, row): one.stored or frozenset() for name in rows for row, one in enumerate(rows[name])}
    largest = {place: max(values - ignored, default=0) for place, values in masks.items()}
    name, row = max(largest, key=largest.get)
    highest = largest[name, row]
    if highest < MANY_VALUES or (highest <= 255 and len({*largest.values()} - {0}) == 1):
        return
    if all(values | ignored | {0} == ignored | {*range(largest[place] + 1)} for place, values in masks.items()):
        raise BadDataError(
            f"The masks seem to number objects, without a gap, up to {highest} in "
            f"{file_of(data.sets[name], row, 'label')}, but must hold the class of each pixel: make background and "
            f"object of them with {CONVERT_OBJECTS}, or, if the numbers are classes, name these in FOLDER/classes.txt."
        )


def _check_all_values(
    data: SegmentationData, rows: dict[str, list[_Row]], num_labels: int | None, transform: MaskConvention
) -> list[int]:
    present = {name: set().union(*(row.values for row in rows[name])) for name in WITH_MASKS}
    ignore_index = transform.ignore_index
    number = num_labels or max(set().union(*present.values()) - {ignore_index}, default=0) + 1
    # If the user asks for one class, 0 is that class and 255 the ignored pixels.
    sentence = None if num_labels == 1 else describe_binary_masks(data.sets, number, transform)
    if sentence:
        raise BadDataError(sentence)
    for split, found in present.items():
        if not found - {ignore_index}:
            raise BadDataError(
                f"All pixels of all {split} masks have the ignore index {ignore_index}, so they show no class; "
                "correct the masks, or list the value of each class with --mask_values."
            )
    return sorted(set().union(*present.values()) - {ignore_index})


def _infer_num_labels(values: list[int]) -> int:
    num_labels = values[-1] + 1
    missing = num_labels - len(values)
    if missing > len(values):
        logger.warning(
            "The largest value in the masks, %d, gives %d classes, but %d of them never occur; if the values are not "
            "class indices, list them with --mask_values.",
            values[-1],
            num_labels,
            missing,
        )
    return num_labels


def _problem_of_all(data: SegmentationData, rows, num_labels: int | None, transform: MaskConvention) -> str:
    """A last line about what is wrong with the masks of the good files as a whole; empty if nothing is."""
    if not all(len(data.sets[name]) for name in WITH_MASKS):
        return ""
    try:
        _check_all_values(data, rows, num_labels, transform)
    except BadDataError as error:
        return f"\nAnd of the others: {error}"
    return ""


def _describe_problems(rows: dict[str, list[_Row]]) -> str:
    first, others = {}, []  # one row of each kind comes first, so that the user sees every kind at once
    for row in (row for checked in rows.values() for row in checked if row.problem):
        kind = str(
            [(column, re.sub(r"\d+", "", one)[:KIND_LENGTH]) for column, said in row.wrong.items() for one in said]
        )
        if first.setdefault(kind, row.problem) is not row.problem:
            others.append(row.problem)
    problems = [*first.values(), *others]
    lines = [f"- {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"- and {len(problems) - SHOWN_PROBLEMS} more")
    files = "1 bad file was found" if len(problems) == 1 else f"{len(problems)} bad files were found"
    return f"{files}; correct the data, or leave bad files out with --skip_bad_files:\n" + "\n".join(lines)
