"""Writes predictions as outlines for a labeling tool, in which a person corrects them."""

import json
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.labeling.annotations import LABELME, WRITERS, labelme_content
from ..data.labeling.polygons import annotate, drawn_classes
from ..utils.files import read_json, read_json_object, whole_file, write_json


class AnnotationWriter:
    """
    Writes `<name>_outlines.json` for each image, and for all images the files of a tool; a [`ResultWriter`]. For
    LabelMe, each image also gets its own file, which is not written again after somebody has changed it.

    Args:
        output_dir (`Path`): folder of the results.
        kind (`str`): one of [`WRITERS`].
        labels (`Sequence[str]`): name of each class.
        palette (`np.ndarray`): color of each class, uint8 (num_labels, 3).
        shown (`Sequence[int]`): the classes to outline; `background` never gets an outline.
        tolerance (`float`): see [`outline_regions`].
        images (`Mapping[Path, str]`): name of an image's results -> path of the image in `images_dir`, with slashes.
        images_dir (`Path`): folder of the images.
        large (`Collection[Path]`): names of images that are predicted in tiles, and get no outlines.
    """

    wants_confidence = False

    def __init__(
        self,
        output_dir: Path,
        kind: str,
        labels: Sequence[str],
        palette: np.ndarray,
        shown: Sequence[int],
        tolerance: float,
        images: Mapping[Path, str],
        images_dir: Path,
        large: Collection[Path] = (),
    ):
        self.output_dir, self.kind, self.labels, self.palette = output_dir, kind, labels, palette
        self.drawn, self.tolerance = set(shown).intersection(drawn_classes(labels)), tolerance
        self.images = {name: path for name, path in images.items() if name not in large}
        self.images_dir, self.num_large = images_dir, len(large)
        self.lost = self.pixels = 0

    def image_paths(self, name: Path) -> list[Path]:
        if name not in self.images:
            return []
        return outline_files(self.output_dir, name)[: 2 if self.kind == "labelme" else 1]

    def run_paths(self) -> list[Path]:
        return [self.output_dir / file for file in WRITERS[self.kind].files]

    def write(self, name: Path, image: Image.Image, mask: np.ndarray, confidence: np.ndarray | None):
        part = annotate(mask, self.images[name], name.as_posix(), self.drawn, self.tolerance)
        path, *of_tool = self.image_paths(name)
        for file in of_tool:
            self._write_labelme(part, read_json_object(path), file)
        with whole_file(path) as unfinished:
            unfinished.write_text(json.dumps(part, ensure_ascii=False), encoding="utf-8")

    def _write_labelme(self, part: dict, earlier: dict, file: Path):
        """Writes LabelMe's file of an image; `earlier` has the outlines of an earlier run, or is empty."""
        image = self.images_dir / part["image"]
        contents = [labelme_content(one, file, self.labels, image) for one in (part, earlier) if one]
        if file.exists() and read_json_object(file) not in contents:
            print(f"{file} has been changed in the tool and is kept; its image is newer, so look at it again.")
            file.touch()  # an older file than the image would make the next run predict the image again
            return
        write_json(file, contents[0])

    def finish(self):
        """Writes the files of the tool, and prints how many pixels the outlines have lost."""
        self.lost = self.pixels = 0
        parts = self._parts()
        WRITERS[self.kind].write(parts, self.output_dir, self.labels, self.palette.tolist())
        deque(parts, maxlen=0)  # counts the pixels of parts that the tool does not need, such as LabelMe
        print(
            f"Outlines for {self.kind}, within {self.tolerance:g} pixels: {self.lost:,} of {self.pixels:,} pixels "
            f"({100 * self.lost / max(1, self.pixels):.2f} %) lie in another class than the masks have."
        )
        if self.num_large:
            print(f"Without outlines, because they are predicted in tiles: {self.num_large} images.")

    def _parts(self) -> Iterator[dict]:
        for name in self.images:
            path = self.image_paths(name)[0]
            if path.exists():  # an image that has failed has no outlines
                part = read_json(path)
                self.lost += part["lost"]
                self.pixels += part["width"] * part["height"]
                yield part


def outline_files(output_dir: Path, name: Path) -> list[Path]:
    """The files of one image for any tool; the second one is LabelMe's."""
    own = output_dir / name.parent
    return [own / f"{name.name}_outlines.json", output_dir / LABELME / name.parent / f"{name.name}.json"]


def all_files(output_dir: Path, names: Iterable[Path]) -> list[Path]:
    """All files that runs may have written for any tool, except LabelMe's of each image, which people correct."""
    of_run = [output_dir / file for kind in WRITERS.values() for file in kind.files]
    return of_run + [outline_files(output_dir, name)[0] for name in names]
