"""The names of folders and splits of data sets: one table, for folders and the Hub alike."""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from ...utils.files import is_hidden


SPLIT_NAMES = {
    "train": ("train", "training", "labeled", "labelled"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation"),
    "unlabeled": ("unlabeled", "unlabelled", "unannotated", "unsupervised"),
    "test": ("test", "testing"),
}
# The first name that is there counts, since Annotations in VOC's folders holds no masks.
KIND_NAMES = {
    "images": ("images", "image", "imgs", "img", "jpegimages"),
    "masks": ("masks", "mask", "segmentationclasspng", "segmentationclass", "labels", "label", "annotations"),
}
_CONTENT = "(?:set|split|data|images?|imgs?|masks?)"
USED_SPLITS = ("train", "validation", "unlabeled")
TEST_FIX = "a test split is for `allspark evaluate --split test`"


def split_of(name: str) -> str | None:
    """
    The split that a name means; None if it means none. The name may be in any case, end in a number, and hold a word
    for the content: `Val`, `train2017`, `test_set`, `unlabeled_images`.
    """
    bare = re.sub(rf"^{_CONTENT}[\W_]+|[\W_]*{_CONTENT}?[\W_\d]*$", "", name.casefold())
    return next((split for split, names in SPLIT_NAMES.items() if bare in names), None)


def sort_splits(
    names: Iterable[str], where: str, fix: str, used: Collection[str] = USED_SPLITS
) -> tuple[dict[str, str], list[str]]:
    """
    Finds out which name of a folder or a split means which split. In an error, `where` is what to call the data, and
    `fix` what to do.

    Returns:
        `tuple[dict[str, str], list[str]]`: split -> the name, for those of the `used` splits that are there; and the
        other names, by default those of test splits and unknown ones, which are left alone.

    Raises:
        ValueError: if two names mean the same split.
    """
    found, others = {}, []
    for name in sorted(names):
        split = split_of(name)
        if split not in used:
            others.append(name)
        elif split in found:
            raise ValueError(f"{where} has {found[split]} and {name}, which both mean {split}; {fix}.")
        else:
            found[split] = name
    return found, others


def subfolders(folder: Path) -> dict[str, Path]:
    """The folders in a folder that are not hidden, by name; empty if there is no such folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:  # many times faster than Path.is_dir on each of many files
        paths = sorted(folder / entry.name for entry in entries if entry.is_dir())
    return {path.name: path for path in paths if not is_hidden(path.name)}


def find_kinds(folder: Path) -> dict[str, Path]:
    """`"images"` and `"masks"` -> the folders of these in a folder, in any case, if they are there."""
    there = {name.casefold(): path for name, path in subfolders(folder).items()}
    found = {kind: next((there[name] for name in names if name in there), None) for kind, names in KIND_NAMES.items()}
    return {kind: path for kind, path in found.items() if path is not None}
