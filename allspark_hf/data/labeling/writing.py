"""Writes the data folder that training reads from an export."""

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

from ..masks import MAX_NUM_LABELS
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


@dataclass
class Imported:
    """
    What [`write_folder`] wrote.

    Args:
        classes ([`Classes`]): the classes in the folder's list.
        labeled (`dict[str, list[str]]`): "train", "validation" and "test" -> paths of labeled pictures in the folder.
        unlabeled (`dict[str, list[str]]`): the same for pictures without a mask.
        pixels (`dict[str, np.ndarray]`): labeled picture -> number of pixels of each value, int64 (256,).
        masks (`dict[str, str]`): labeled picture -> path of its mask in the folder.
        has_new_background (`bool`): whether class 0 is a `background` that the export does not have.
        extent (`float`): the largest coordinate of all outlines, in pixels.
        overlapped (`int`): number of pixels that objects of two classes cover.
        events (`Counter`): number of objects that are "cut" or "empty" ([`Canvas`]), and number of pictures that are

            - "maybe": without objects, perhaps without annotation;
            - "turned": drawn on the stored photo, so that the mask was turned;
            - "unsure": turned by EXIF, but sizes do not show on which photo they were drawn;
            - "nothing": without a pixel that is not ignored;
            - "moved": from validation to training, because they have no mask;
            - "unknown": of no split, though others have one.
        notes (`list[str]`): sentences for the report, about decisions.
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
        """Whether training might take masks of class 0 and ignored pixels for binary masks, with 255 as class 1."""
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
    and `test`, and `classes.txt` (`classes.json` if a line cannot hold a name). The folder appears when everything is
    written, or not at all.

    Args:
        export ([`Export`]): the export to write.
        files ([`Files`]): the files of the export.
        data_dir (`Path`): a folder that is empty or does not exist ([`require_empty`]).
        outside (`str`, *optional*, defaults to `"background"`): the pixels outside all objects become the class
            `background`, which is added as class 0 if there is none of this name; with `"ignore"`, they are ignored.
        empty_images (`str`, *optional*, defaults to `"unlabeled"`): pictures without objects become unlabeled images
            if the tool does not tell whether somebody looked at them; with `"background"`, they are labeled, and all
            of their pixels lie outside all objects.
        classes ([`Classes`], *optional*): the classes in this order, instead of those of the export.
        to_image (`Callable`, *optional*): makes of a mask, uint8 (height, width), the picture to save.
        finish (`Callable`, *optional*): is called with what was imported and the folder, before the folder gets its
            name.

    Raises:
        ValueError: if pictures cannot be imported (the message lists them), none of the training pictures has a mask,
            or there are more than 255 classes or none.
    """
    values, outside_value, imported = _choose_values(export, outside, classes)
    targets = _targets(export, files, imported)
    problems = []
    with _whole_folder(data_dir) as folder:
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


def is_background(name: str) -> bool:
    """Whether a class of this name lies outside all objects: `background`, in any case and between underscores."""
    return name.strip("_ ").casefold() == BACKGROUND


def require_empty(data_dir: Path, source: Path):
    """Raises `ValueError` if `data_dir` is a file, holds something, or lies in the folder of the export."""
    if data_dir.exists() and (not data_dir.is_dir() or any(data_dir.iterdir())):
        raise ValueError(f"{data_dir} is not an empty folder; name a new one, so that nothing in it is lost.")
    if source.is_dir() and data_dir.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{data_dir} lies in the export {source}, which would then hold it; name a folder beside it.")


@contextmanager
def _whole_folder(data_dir: Path) -> Iterator[Path]:
    """A hidden folder that is renamed to `data_dir` at the end, or removed if something fails."""
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
    """The mask's value for each class of the export and for pixels outside all objects, and the classes to write."""
    if not (classes or export.classes):
        raise ValueError("The export has no classes, and no object with a label; give objects labels in the tool.")
    chosen = classes or Classes([name for name in export.classes if name != IGNORED_NAME], export.colors)
    names, colors, notes = list(chosen.names), chosen.colors, list(export.notes)
    background = next(filter(is_background, names), None)
    is_new = not export.is_dense and outside == BACKGROUND and background is None
    if is_new:
        if classes is not None:  # adding a class at the beginning would shift the classes of the user's list
            raise ValueError(
                "The list of --classes has no class background for the pixels outside all objects; add it, or give "
                "--outside ignore."
            )
        names, colors = [BACKGROUND, *names], colors and [(0, 0, 0), *colors]
        background = BACKGROUND
    if len(names) > MAX_NUM_LABELS:
        raise ValueError(f"There are {len(names)} classes, but a mask holds {MAX_NUM_LABELS}; merge or remove some.")
    values = {name: names.index(name) if name in names else -1 for name in export.classes}
    values |= {IGNORED_NAME: IGNORED} if IGNORED_NAME in values else {}
    outside_value = IGNORED if outside == "ignore" else names.index(background) if background else IGNORED
    return values, outside_value, Imported(Classes(names, colors), notes=notes, has_new_background=is_new)


def _targets(export: Export, files: Files, imported: Imported) -> dict[Picture, str]:
    """For each picture, the path of its copy in its split; no two masks may get the same path."""
    splits = {picture.split for picture in export.pictures} - {"unlabeled", None}
    if splits and splits.isdisjoint({"train"}) and len({picture.split for picture in export.pictures}) == 1:
        imported.notes.append(f"All pictures are of the split {splits.pop()}: they become training pictures.")
        splits = set()
    by_image: dict[Path, Picture] = {}
    for picture in export.pictures:
        split = picture.split if picture.split in splits else "train"
        imported.events["unknown"] += int(bool(splits) and picture.split is None)
        picture = replace(picture, split=split)
        first = by_image.setdefault(picture.image, picture)
        if first is not picture:
            where = f"both in {first.split} and in {split}" if first.split != split else "twice"
            raise ValueError(f"{picture.source} names {picture.image}, which is listed {where}; list it once.")
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
                "would have one name; rename one in the tool."
            )
    return names


def _key(name: str) -> str:
    """The part of a name that must be unique: masks have another extension, and some disks ignore case."""
    return str(Path(name).with_suffix("")).casefold()


def _paint(
    picture: Picture, values: dict[str, int], outside: int, empty_images: str, imported: Imported
) -> np.ndarray | None:
    """The upright mask, uint8 (height, width); `None` without annotation, or if all pixels are ignored."""
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
    if split == "validation" and mask is None:  # training refuses a validation image without a mask
        imported.events["moved"] += 1
        split, target = "train", f"from_val/{target}"
    image = Path("images", FOLDERS[split], target)
    if (folder / image).exists():
        raise ValueError(f"another picture becomes {image.as_posix()} too; rename one of them in the tool")
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
