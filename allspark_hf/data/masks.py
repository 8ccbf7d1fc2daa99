"""What the values of masks mean, and the one way from a mask to the labels of a loss or a metric."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .images import describe_values, mask_to_array


# Key in `info` of a mask whose values are mapped, so that nothing maps them again; keys from files are strings.
HOLDS_CLASSES = ("allspark_hf", "class indices")
MAX_VALUE = 2**31 - 1  # of a mask
MAX_NUM_LABELS = 255  # of a training, whose labels have 8 bits and one value for ignored pixels
MANY_VALUES = 6  # so many may be numbers of objects
CONVERT_OBJECTS = "`allspark import FOLDER NEW_FOLDER --format numbered_objects`"


@dataclass(frozen=True)
class MaskConvention:
    """
    What the stored values of a data set's masks mean. The model's configuration keeps it ([`MaskConvention.of`]), and
    [`read_label`] applies it. As a transform (`Dataset.with_transform`) it maps the masks when rows are read, and
    marks them in their `info`; other columns stay as they are.

    Args:
        mask_values (`tuple[int]`, *optional*): the stored value of class 0, of class 1 and so on; `None`: the values
            are the class indices.
        ignore_index (`int`, *optional*, defaults to 255): the value of ignored pixels, unless `mask_values` lists it.
        ignored_mask_values (`tuple[int]`, *optional*): further stored values that do not count.

    Raises:
        ValueError: if a mask cannot hold a value, or `mask_values` is empty, names a value twice or one that is also
            ignored, or is so long that `ignore_index` is a class index.
    """

    mask_values: tuple[int, ...] | None = None
    ignore_index: int = 255
    ignored_mask_values: tuple[int, ...] = ()

    def __post_init__(self):
        for value in (self.ignore_index, *self.ignored_mask_values, *(self.mask_values or ())):
            if not -MAX_VALUE <= value <= MAX_VALUE:
                raise ValueError(
                    f"{value} is named as a value of masks, but masks hold values from {-MAX_VALUE} to {MAX_VALUE}; "
                    "correct it."
                )
        if self.mask_values is None:
            return
        listed = list(self.mask_values)
        text = " ".join(map(str, listed))
        if not listed:
            raise ValueError("The list of mask values is empty; give the stored value of each class, in order.")
        if len(set(listed)) != len(listed):
            raise ValueError(f"The mask values {text} name one value twice; give each class its own value.")
        both = sorted(set(listed) & set(self.ignored_mask_values))
        if both:
            raise ValueError(
                f"The mask values {text} and the ignored mask values both name {describe_values(both)}; a value is "
                "either a class or ignored, so take it out of one list."
            )
        if 0 <= self.ignore_index < len(listed):
            raise ValueError(
                f"With the {len(listed)} mask values {text}, the ignore index {self.ignore_index} is also the index "
                "of a class; leave --ignore_index out, and name what does not count with --ignored_mask_values "
                f"{self.ignore_index}."
            )

    @classmethod
    def of(cls, config) -> "MaskConvention":
        """
        The convention of a model: `mask_values`, `ignored_mask_values` and `semantic_loss_ignore_index` of its
        configuration.

        Raises:
            ValueError: if the values cannot be used, or there is not one for each class.
        """
        values = getattr(config, "mask_values", None)
        if values is not None and len(values) != config.num_labels:
            raise ValueError(
                f"mask_values lists {len(values)} classes, but the model has {config.num_labels}: list each, or set "
                "it to None where masks hold class indices."
            )
        ignored = tuple(getattr(config, "ignored_mask_values", None) or ())
        return cls(None if values is None else tuple(values), config.semantic_loss_ignore_index, ignored)

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """
        Maps the masks of some rows: the column `label`, where present, gets gray masks of mode L with the class
        indices (mode I where an index or the ignore index is above 255), and keeps `None`.
        """
        if "label" not in batch:
            return batch
        return {**batch, "label": [None if mask is None else self._mapped(mask) for mask in batch["label"]]}

    def _mapped(self, mask: Image.Image) -> Image.Image:
        mapped = Image.fromarray(self.map(mask_to_array(mask)))
        mapped.info[HOLDS_CLASSES] = True
        return mapped

    @property
    def maps(self) -> bool:
        """Whether the values differ from class indices, so that masks must be mapped."""
        return self.mask_values is not None or bool(self.ignored_mask_values)

    @property
    def says_what_255_is(self) -> bool:
        """Whether the user said what 255 means; otherwise it is ignored by default."""
        return 255 in (*(self.mask_values or ()), *self.ignored_mask_values) or self.ignore_index != 255

    def map(self, array: np.ndarray) -> np.ndarray:
        """
        Replaces stored values, integers (height, width), by class indices and `ignore_index`: uint8 where all of these
        fit, else int32. Without a list of values, `array` itself.

        Raises:
            ValueError: if the mask holds a value that is neither listed nor ignored.
        """
        if not self.maps:
            return array
        has_small_index = 0 <= self.ignore_index <= 255
        if self.mask_values is None:
            fits = array.dtype == np.uint8 and has_small_index
            ignored = np.isin(array, self.ignored_mask_values)
            # In 64 bits first, because NumPy turns an ignore index of 256 into 0 beside 8-bit values.
            mapped = np.where(ignored, self.ignore_index, array.astype(np.int64))
            return mapped.astype(np.uint8 if fits else np.int32)
        ignored = [*self.ignored_mask_values, self.ignore_index]
        stored = np.array([*self.mask_values, *ignored], dtype=np.int64)
        classes = np.array([*range(len(self.mask_values)), *[self.ignore_index] * len(ignored)], dtype=np.int64)
        # A listed ignore index occurs twice; the stable sort and the left search keep the class, which comes first.
        order = np.argsort(stored, kind="stable")
        stored, classes = stored[order], classes[order]
        position = np.minimum(np.searchsorted(stored, array), len(stored) - 1)
        unknown = stored[position] != array
        if unknown.any():
            raise ValueError(
                f"The mask holds {describe_values(np.unique(array[unknown]))}, which the mask values "
                f"{' '.join(map(str, self.mask_values))} do not list and which is not the ignore index "
                f"{self.ignore_index}; list every value that occurs, in the order of the classes, or name those that "
                "do not count with --ignored_mask_values."
            )
        fits = has_small_index and len(self.mask_values) <= 256
        return classes[position].astype(np.uint8 if fits else np.int32)


CLASS_INDICES = MaskConvention()


def values_in_mask(stored: np.ndarray, num_labels: int | None, convention: MaskConvention) -> frozenset[int]:
    """
    The classes of the values in a mask, the ignore index included.

    Raises:
        ValueError: if a value is none of these; without a number of classes, these are 0 to 255.
    """
    ignore_index = convention.ignore_index
    found = np.unique(convention.map(stored))
    highest = 255 if num_labels is None else num_labels - 1  # labels have 8 bits
    wrong = found[((found < 0) | (found > highest)) & (found != ignore_index)]
    if not len(wrong):
        return frozenset(found.tolist())
    if set(found.tolist()) == {0, 255}:
        raise ValueError(binary_sentence("The mask holds"))
    allowed = "0 to 255" if num_labels is None else f"0 to {num_labels - 1} (for {num_labels} classes)"
    objects = f"; if they number objects, convert them with {CONVERT_OBJECTS}" if len(wrong) >= MANY_VALUES else ""
    raise ValueError(
        f"The mask holds {describe_values(wrong)}, but only {allowed} and the ignore index {ignore_index} are "
        "allowed; correct the mask or the number of classes, or list the value of each class with --mask_values and "
        f"the values that do not count with --ignored_mask_values{objects}."
    )


def read_label(
    mask: Image.Image, image_size: tuple[int, int], num_labels: int, convention: MaskConvention, where: str
) -> np.ndarray:
    """
    The class indices of a decoded mask, uint8 (height, width), checked against the size (width, height) of its image
    and the number of classes. The convention is not used if a transform has mapped the mask already; an error calls
    the mask `where`.

    Raises:
        ValueError: if there is no mask, the sizes differ, a value is no class or does not fit into 8 bits, or there
            are two classes and 255 may be one of them.
    """
    if mask is None:
        raise ValueError(f"There is no mask of {where}: take the image out, or give a mask.")
    array = mask_to_array(mask)
    height, width = array.shape
    if (width, height) != image_size:
        raise ValueError(
            f"The mask of {where} is {width}x{height} pixels, its image {image_size[0]}x{image_size[1]}: "
            "give every image a mask of its own size."
        )
    if not mask.info.get(HOLDS_CLASSES):
        if num_labels == 2 and not convention.says_what_255_is and set(np.unique(array).tolist()) == {0, 255}:
            raise ValueError(binary_sentence(f"The mask of {where} holds"))
        try:
            array = convention.map(array)
        except ValueError as error:
            raise ValueError(str(error).replace("The mask holds", f"The mask of {where} holds", 1)) from error
    ignore_index = convention.ignore_index
    wrong = (array != ignore_index) & ((array < 0) | (array >= num_labels))
    if wrong.any():
        raise ValueError(value_sentence(where, array[wrong][0], num_labels, ignore_index))
    large = (array < 0) | (array > 255)
    if large.any():
        raise ValueError(
            f"The mask of {where} has the value {int(array[large][0])}, but labels have 8 bits: number classes and "
            "ignored pixels from 0 to 255."
        )
    return array.astype(np.uint8)


def value_sentence(where: str, value: int, num_labels: int, ignore_index: int) -> str:
    """One sentence about a mask, called `where`, with a value that is no class."""
    return (
        f"The mask of {where} has the value {int(value)}, but the model has classes 0 to {num_labels - 1} and ignores "
        f"{ignore_index}: correct the mask, or list the stored values (mask_values)."
    )


def binary_sentence(masks_hold: str, others: Sequence[int] = ()) -> str:
    """One sentence about masks of only 0 and 255, with the options; `others` are values of other masks, ascending."""
    void = "--ignored_mask_values 255 (in Python ignored_mask_values=[255] in the model's configuration)"
    if others:
        return (
            f"{masks_hold} only 0 and 255, while others hold {others[0]}: if 255 is a class, store all masks in one "
            f"way (class indices); if its pixels do not count, give {void}."
        )
    return (
        f"{masks_hold} only 0 and 255, so that 255 may be a class, as in binary masks: if it is, give --mask_values "
        "0 255 (in Python mask_values=[0, 255] in the model's configuration); if its pixels do not count, give "
        f"{void}."
    )
