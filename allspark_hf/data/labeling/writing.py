"""From an export to the folder that training reads."""

import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..sources.class_lists import IGNORED_NAME
from ..sources.classes import Classes, write_classes
from ..sources.pairs import require_usable_name
from .export import IGNORED, Canvas, Export, Picture
from .files import Files, bare_name, read_frame


BACKGROUND = "background"
OUTSIDE = (BACKGROUND, "ignore")
EMPTY = ("unlabeled", BACKGROUND)
FOLDERS = {"train": "train", "validation": "val", "test": "test"}
SHOWN_PROBLEMS = 10
MAX_CLASSES = 255  # 255 itself means ignored


@dataclass
class Imported:
    """
    What [`write_folder`] wrote.

    Args:
        classes ([`Classes`]): as in the folder's list.
        labeled (`dict[str, list[str]]`): for "train", "validation" and "test", paths of pictures in the folder.
        unlabeled (`dict[str, list[str]]`): the same for pictures without a mask.
        pixels (`dict[str, np.ndarray]`): for each labeled picture the number of pixels by value, int64 (256,).
        masks (`dict[str, str]`): for each labeled picture the path of its mask in the folder.
        has_new_background (`bool`): whether class 0 is a `background` that the export does not have.
        extent (`float`): the largest coordinate of all outlines, in pixels.
        overlapped (`int`): pixels where objects of two classes lie over each other.
        events (`Counter`): numbers of objects: "cut" and "empty" ([`Canvas`]); of pictures: "maybe" ones without
            objects, "turned" ones, whose masks were drawn on the stored photo, "unsure" ones, whose sizes do not show
            whether they were, "nothing": without a pixel that counts, "moved" ones of the validation split, without a
            mask, and "unknown" ones, of no split.
        notes (`list[str]`): sentences about what was decided.
    """

    classes: Classes
    labeled: dict[str, list[str]] = field(default_factory=lambda: {split: [] for split in FOLDERS})
    unlabeled: dict[str, list[str]] = field(default_factory=lambda: {split: [] for split in FOLDERS})
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    has_new_background: bool = False
    extent: float = 0.0
    overlapped: int = 0
    events: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def has_ambiguous_masks(self) -> bool:
        """Whether training would take masks of class 0 and ignored pixels for binary ones, with 255 for class 1."""
        values = [frozenset(np.flatnonzero(counts)) for counts in self.pixels.values()]
        return len(self.classes.names) == 2 and {0, IGNORED} in values


def write_folder(
    export: Export,
    files: Files,
    data_dir: Path,
    outside: str = BACKGROUND,
    empty_images: str = "unlabeled",
    classes: Classes | None = None,
    to_image: Callable[[np.ndarray], Image.Image] = Image.fromarray,
    finish: Callable[[Imported, Path], None] | None = None,
) -> Imported:
    """
    Copies the pictures and writes masks and the list of classes: `images/train`, `masks/train`, the same with `val`
    and `test`, and `classes.txt` (`classes.json` where names do not fit into lines). The folder appears when all is
    done, or not at all.

    Args:
        export ([`Export`]): what to write.
        files ([`Files`]): of the export.
        data_dir (`Path`): a folder that is empty or not there ([`require_empty`]).
        outside (`str`, *optional*, defaults to `"background"`): what lies outside all objects: the class
            `background`, which becomes class 0 unless there is one of this name; or `"ignore"`: it does not count.
        empty_images (`str`, *optional*, defaults to `"unlabeled"`): what a picture without objects is if the tool
            cannot tell whether somebody looked at it; `"background"`: all of it lies outside all objects.
        classes ([`Classes`], *optional*): names, in this order, instead of those of the export.
        to_image (`Callable`, *optional*): makes the picture to save of a mask, uint8 (height, width).
        finish (`Callable`, *optional*): is told what was imported, and the folder, before that gets its name.

    Raises:
        ValueError: if pictures cannot be imported, which the message lists, none of the training pictures has a mask,
            or there are more than 255 classes or none.
    """
    values, outside_value, imported = _choose_values(export, outside, classes)
    targets = _targets(export, files, imported)
    problems = []
    with _appearing(data_dir) as folder:
        for picture, target in tqdm(targets.items(), desc="Importing", unit="image", disable=None):
            try:
                mask = _paint(picture, values, outside_value, empty_images, imported)
                _write(picture, target, mask, folder, imported, to_image)
            except (OSError, ValueError) as error:
                problems.append(f"{picture.source}: {picture.image.name}: {str(error).rstrip('.')}.")
            except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
                reason = f"an entry is missing or malformed ({type(error).__name__}: {error}); export it anew"
                problems.append(f"{picture.source}: {picture.image.name}: {reason}.")
        if problems:
            more = len(problems) - SHOWN_PROBLEMS
            shown = problems[:SHOWN_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
            counted = "1 picture" if len(problems) == 1 else f"{len(problems)} pictures"
            raise ValueError("\n".join([f"Nothing is written, since {counted} cannot be imported:", *shown]))
        if 0 < imported.extent <= 1:
            raise ValueError(
                "Every outline lies within the upper left pixel of its picture, as if its coordinates were shares of "
                "width and height; export them in pixels."
            )
        if not imported.labeled["train"]:
            raise ValueError(
                "None of the training pictures has an annotation, so there is nothing to learn from; annotate some, "
                "or give the export that holds them."
            )
        try:
            write_classes(imported.classes, folder / "classes.txt")
        except ValueError:
            write_classes(imported.classes, folder / "classes.json")
        if finish is not None:
            finish(imported, folder)
    return imported


def require_empty(data_dir: Path, source: Path):
    """Raises `ValueError` if `data_dir` is a file, holds something, or lies in the folder of the export."""
    if data_dir.exists() and (not data_dir.is_dir() or any(data_dir.iterdir())):
        raise ValueError(f"{data_dir} is not an empty folder; name a new one, so that nothing in it is lost.")
    if source.is_dir() and data_dir.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{data_dir} lies in the export {source}, which would then hold it; name a folder beside it.")


@contextmanager
def _appearing(data_dir: Path) -> Iterator[Path]:
    """A hidden folder that becomes `data_dir` at the end, and goes if something fails."""
    folder = data_dir.absolute().with_name(f".{data_dir.absolute().name}-{uuid.uuid4().hex[:8]}")
    new = [parent for parent in folder.parents if not parent.exists()]
    folder.mkdir(parents=True)
    try:
        yield folder
        if data_dir.exists():
            data_dir.rmdir()
        folder.rename(data_dir)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            for parent in new:  # unless something is in it
                parent.rmdir()


def _choose_values(export: Export, outside: str, classes: Classes | None) -> tuple[dict[str, int], int, Imported]:
    """The mask's value for each class of the export and for what lies outside, and the classes of the folder."""
    if not (classes or export.classes):
        raise ValueError("The export has no classes, and no object with a label; give objects labels in the tool.")
    chosen = classes or Classes([name for name in export.classes if name != IGNORED_NAME], export.colors)
    names, colors, notes = list(chosen.names), chosen.colors, list(export.notes)
    background = next((name for name in names if name.strip("_ ").casefold() == BACKGROUND), None)
    is_new = not export.is_dense and outside == BACKGROUND and background is None
    if is_new:
        if classes is not None:  # to put it first would shift those that the user has listed
            raise ValueError(
                "The list of --classes lists no class background for what lies outside all objects; add it, or give "
                "--outside ignore."
            )
        names, colors = [BACKGROUND, *names], colors and [(0, 0, 0), *colors]
        background = BACKGROUND
    if len(names) > MAX_CLASSES:
        raise ValueError(f"There are {len(names)} classes, but a mask holds {MAX_CLASSES}; merge or remove some.")
    values = {name: names.index(name) if name in names else -1 for name in export.classes}
    values |= {IGNORED_NAME: IGNORED} if IGNORED_NAME in values else {}
    outside_value = IGNORED if outside == "ignore" else names.index(background) if background else IGNORED
    return values, outside_value, Imported(Classes(names, colors), notes=notes, has_new_background=is_new)


def _targets(export: Export, files: Files, imported: Imported) -> dict[Picture, str]:
    """For each picture the path that its copy gets in its split, once no two agree."""
    splits = {picture.split for picture in export.pictures} - {"unlabeled", None}
    if splits and splits.isdisjoint({"train"}) and len({picture.split for picture in export.pictures}) == 1:
        imported.notes.append(f"All pictures are of the split {splits.pop()}: they become training pictures.")
        splits = set()
    by_image: dict[Path, Picture] = {}
    for picture in export.pictures:
        split = picture.split if picture.split in splits else "train"
        picture = replace(picture, split=split)
        first = by_image.setdefault(picture.image, picture)
        if first is not picture:
            where = f"both in {first.split} and in {split}" if first.split != split else "twice"
            raise ValueError(f"{picture.source} names {picture.image}, which is listed {where}; list it once.")
        imported.events["unknown"] += int(split != "train" and picture.split is None)
    relative = {picture: picture.image.relative_to(files.folder) for picture in by_image.values()}
    names = {picture: bare_name(path) for picture, path in relative.items()}
    taken = Counter((picture.split, _key(name)) for picture, name in names.items())
    for picture, name in names.items():
        if taken[picture.split, _key(name)] > 1:
            names[picture] = "__".join(relative[picture].parts)
    paths: dict[tuple, Picture] = {}
    for picture, name in names.items():
        require_usable_name(picture.image, name)
        other = paths.setdefault((picture.split, _key(name)), picture)
        if other is not picture:
            raise ValueError(
                f"{other.image} and {picture.image} have the same name but for case or extension, so that their masks "
                "would; rename one in the tool."
            )
    return names


def _key(name: str) -> str:
    """What names must differ in: a mask is called like its picture, and some disks do not tell case."""
    return str(Path(name).with_suffix("")).casefold()


def _paint(
    picture: Picture, values: dict[str, int], outside: int, empty_images: str, imported: Imported
) -> np.ndarray | None:
    """The upright mask, uint8 (height, width); `None` without annotation, or where no pixel counts."""
    height, width, turn, is_unsure = read_frame(picture.image, picture.size)
    paint = picture.paint
    if paint is None and picture.may_be_empty:
        imported.events["maybe"] += 1
        paint = (lambda canvas: None) if empty_images == BACKGROUND else None
    if paint is None:
        return None
    canvas = Canvas(height, width, values, outside)
    paint(canvas)
    imported.events["unsure"] += int(is_unsure)
    imported.events["turned"] += int(turn is not None)
    imported.events += canvas.events
    imported.extent = max(imported.extent, canvas.extent)
    imported.overlapped += int(canvas.overlapped.sum())
    if (canvas.mask == IGNORED).all():
        imported.events["nothing"] += 1
        return None
    return canvas.mask if turn is None else np.asarray(Image.fromarray(canvas.mask).transpose(turn))


def _write(
    picture: Picture,
    target: str,
    mask: np.ndarray | None,
    folder: Path,
    imported: Imported,
    to_image: Callable[[np.ndarray], Image.Image],
):
    split = picture.split
    if split == "validation" and mask is None:  # training refuses it among the validation images
        imported.events["moved"] += 1
        split, target = "train", f"from_val/{target}"
    image = Path("images", FOLDERS[split], target)
    (folder / image).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(picture.image, folder / image)
    kept = imported.unlabeled if mask is None else imported.labeled
    kept[split].append(image.as_posix())
    if mask is not None:
        path = Path("masks", FOLDERS[split], target).with_suffix(".png")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        to_image(mask).save(folder / path)
        imported.masks[image.as_posix()] = path.as_posix()
        imported.pixels[image.as_posix()] = np.bincount(mask.ravel(), minlength=256)


__all__ = ["EMPTY", "OUTSIDE", "Imported", "require_empty", "write_folder"]
