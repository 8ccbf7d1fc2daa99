"""Which form a data folder has, and whether it is the export of a labeling tool instead."""

import shlex
from pathlib import Path

from .labeling.formats import FORMATS, find_export, holds_indices, recognize_export
from .sources.folder import FolderLayout, split_folders
from .sources.layout import Layout
from .sources.layouts import LAYOUTS, VocLayout, holds_own_images, voc_roots
from .sources.pairs import require_folder
from .sources.split_names import find_kinds


def find_layout(data_dir: str | Path, data_format: str | None = None, voc_masks: str = "original") -> Layout:
    """
    The layout of a data folder.

    Args:
        data_dir (`str` or `Path`): the folder.
        data_format (`str`, *optional*): `"folder"`, `"voc"`, `"cityscapes"` or `"coco"`; `None` goes by the folders in
            it: `images`, `JPEGImages` (also in `VOC2012` or `VOCdevkit/VOC2012`), `leftImg8bit`, or `train2017` and
            `val2017`.
        voc_masks (`str`, *optional*, defaults to `"original"`): see [`VocLayout`].

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if the folder has none of these forms, or several, or is the export of a labeling tool
            ([`ExportFound`]).
    """
    data_dir = Path(data_dir).absolute()
    if data_dir.is_file():
        raise ExportFound(
            f"data_dir {data_dir} is a file: give a folder; if the file is an export of a labeling tool, `allspark "
            f"import {shlex.quote(str(data_dir))} NEW_FOLDER` makes one."
        )
    require_folder(data_dir, "data_dir must name one")
    if data_format is not None:
        return _make_layout(data_dir, data_format, voc_masks)
    _require_no_export(data_dir, recognize_export(data_dir))
    try:
        layout = _make_layout(data_dir, _recognize(data_dir), voc_masks)
    except (FileNotFoundError, ValueError) as error:
        _look_for_export(data_dir, error)
        raise
    if isinstance(layout, FolderLayout) and not holds_indices(layout.places["train"].masks):
        _look_for_export(data_dir, f"{data_dir} holds no masks of class indices.")
    return layout


def _look_for_export(data_dir: Path, why: object):
    """Raises `ExportFound` if a folder is an export; for one that cannot be read, `ValueError` with `why` first."""
    try:
        name = find_export(data_dir)
    except (OSError, ValueError) as error:
        raise ValueError(f"{why} As the export of a labeling tool it cannot be read either: {error}") from error
    _require_no_export(data_dir, name)


class ExportFound(ValueError):
    """A data folder is the export of a labeling tool, or a file that may be one."""


def _require_no_export(data_dir: Path, name: str | None):
    if name is not None:
        raise ExportFound(
            f"{data_dir} is an export of a labeling tool: {FORMATS[name]}; make a data folder of it with `allspark "
            f"import {shlex.quote(str(data_dir))} NEW_FOLDER`, and give NEW_FOLDER."
        )


def _make_layout(data_dir: Path, data_format: str, voc_masks: str) -> Layout:
    if data_format not in LAYOUTS:
        raise ValueError(f"data_format is {data_format!r}, but it must be one of {', '.join(LAYOUTS)}.")
    if data_format == "voc":
        return VocLayout(data_dir, voc_masks)
    if voc_masks != "original":
        raise ValueError(f"voc_masks is {voc_masks!r}, but {data_dir} is read as {data_format}; leave it out.")
    return LAYOUTS[data_format](data_dir)


def _recognize(data_dir: Path) -> str:
    voc = next((root for root in voc_roots(data_dir) if (root / "JPEGImages").is_dir()), None)
    kinds = find_kinds(data_dir)
    is_own = voc == data_dir and holds_own_images(data_dir)
    has_images = kinds["images"] != data_dir / "JPEGImages" if "images" in kinds else bool(split_folders(data_dir))
    signs = {
        "folder": is_own or has_images,
        "voc": voc is not None and not is_own,
        "cityscapes": (data_dir / "leftImg8bit").is_dir(),
        "coco": (data_dir / "train2017").is_dir() or (data_dir / "val2017").is_dir(),
    }
    found = [name for name, is_there in signs.items() if is_there]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{data_dir} may be read as {' or '.join(found)}; choose one with --data_format.")
    raise ValueError(
        f"{data_dir} holds neither images/ and masks/ or train/images/ and train/masks/ (a folder of your own), nor "
        "JPEGImages/ or VOCdevkit/VOC2012/ (Pascal VOC), leftImg8bit/ and gtFine/ (Cityscapes), or train2017/, "
        "val2017/ and masks/ (COCO); give the folder that holds them."
    )
