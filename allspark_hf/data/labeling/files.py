"""The pictures, splits and classes of an export, and how its tool saw pictures that EXIF turns."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from PIL import Image

from ...utils.files import find_image_files
from ...utils.text import one_line
from ..pixels import ORIENTATION, WIDTH, open_image
from ..sources.classes import classes_in
from ..sources.pairs import nfc, require_folder
from ..sources.split_names import KIND_NAMES, split_of


HEIGHT = WIDTH + 1  # tag of TIFF
TURNED = {  # EXIF orientation that swaps width and height -> what makes the picture upright
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Files:
    """
    The pictures of an export, found by the names that the tool gives them.

    Args:
        root (`Path`): folder of the export.
        images_dir (`Path`, *optional*): folder of the pictures, if they do not lie in `root`.

    Raises:
        FileNotFoundError: if there is no such folder.
    """

    def __init__(self, root: Path, images_dir: Path | None = None):
        self.root, self.folder = root, images_dir or root
        require_folder(self.folder, "--images_dir must name that of the pictures")
        self.images = find_image_files(self.folder)[0]
        self._by_name: dict[str, list[Path]] = {}
        for path in self.images:
            self._by_name.setdefault(nfc(path.name), []).append(path)

    def find(self, name: str, source: Path, split: str | None = None) -> Path:
        """
        The picture that a file of the export names. If several pictures have this name, these rules choose, one after
        another: the folders before the name agree best; the name is a path from the file's folder, or from the folder
        of pictures; the picture lies nearest to the file; its folders mean the split. A picture whose folders mean
        another split than those in a relative name is another picture.

        Raises:
            FileNotFoundError: if there is no such picture.
            ValueError: if several are as likely.
        """
        parts = [part for part in PurePosixPath(nfc(name.replace("\\", "/"))).parts if part not in ("..", "/")]
        is_absolute = name[:1] in ("/", "\\") or name[1:2] == ":"
        named = None if is_absolute else split_in(parts[:-1])
        found = self._by_name.get(parts[-1], []) if parts else []
        found = [path for path in found if named is None or self.split_of(path) in (None, named)]
        tests = (
            lambda path: _shared(reversed(path.parts), reversed(parts)),
            lambda path: 2 * (path == source.parent.joinpath(*parts)) + (path == self.folder.joinpath(*parts)),
            lambda path: _shared(path.parts, source.parts),
            lambda path: self.split_of(path) == split,
        )
        for test in tests:
            best = max(map(test, found), default=0)
            found = [path for path in found if test(path) == best]
        if not found:
            raise FileNotFoundError(
                f"{source} names the picture {name}, which is not in {self.folder}; put it there, or name the folder "
                "of the pictures with --images_dir."
            )
        if len(found) > 1:
            raise ValueError(
                f"{source} names the picture {name}, which may be {found[0]} or {found[1]}; move one of them away, or "
                "export names with folders."
            )
        return found[0]

    def split_of(self, picture: Path) -> str | None:
        """The split that the folders of a picture mean."""
        return split_in(picture.relative_to(self.folder).parts[:-1])

    def has(self, name: str) -> bool:
        """Whether there is a picture of this name in any folder."""
        return nfc(PurePosixPath(name).name) in self._by_name

    def not_named(self, used: Iterable[Path]) -> list[str]:
        """A sentence about the pictures that the export does not name, if there are any."""
        others = sorted(set(self.images) - set(used))
        if not others:
            return []
        return [
            f"Left alone in {self.folder}: {len(others)} pictures that the export does not name, first {others[0]}; "
            "to learn from them, give their folder to training as --unlabeled_dir."
        ]


def _shared(some: Iterable[str], others: Iterable[str]) -> int:
    """How many names agree before the first two that differ."""
    count = 0
    for one, other in zip(some, others, strict=False):
        if nfc(one) != nfc(other):
            break
        count += 1
    return count


def names_of(root: Path, used: Iterable[str]) -> tuple[list[str], str]:
    """
    The classes of an export that does not list them, from a file in its folder, or else the names `used` by objects,
    in alphabetical order; and a sentence about their source.

    Raises:
        ValueError: if the file does not list the name of an object, or cannot be read.
    """
    used = sorted(set(used))
    listed = classes_in(root)
    if listed is None:
        return used, "The export lists no classes: they are those that occur, sorted; --classes FILE lists others."
    missing = [name for name in used if name not in listed.names]
    if missing:
        raise ValueError(f"An object is called {missing[0]!r}, which the list of classes in {root} lacks; add it.")
    return listed.names, f"The classes are those of the list in {root}."


def split_in(parts: Iterable[str]) -> str | None:
    """The split that the last name with such a meaning means; `instances_train2017` means train."""
    words = [word for part in parts for word in (part, part.rpartition("_")[2])]
    return next((split for word in reversed(words) if (split := split_of(word))), None)


def bare_name(relative: Path) -> str:
    """A picture's path without folders that mean a split or pictures, such as `train` and `images`."""
    folders = [part for part in relative.parts[:-1] if not split_of(part)]
    folders = [part for part in folders if part.casefold() not in KIND_NAMES["images"]]
    return nfc("/".join([*folders, relative.name]))


def read_frame(image: Path, size: tuple[int, int] | None) -> tuple[int, int, Image.Transpose | None, bool]:
    """
    Finds out how a tool saw a picture that EXIF turns, by the height and width that the tool gives: upright, as people
    and training see it, or as it is stored. Without a size, upright. Only the beginning of the file is read.

    Returns:
        `tuple`: height and width of the mask to paint; the transposition that then makes the mask upright, or `None`;
        and whether the sizes cannot tell how the tool saw the picture, so that upright is assumed.

    Raises:
        ValueError: if the picture cannot be read, or has another size both upright and as stored.
    """
    try:
        with open_image(image) as opened:
            (width, height), orientation = opened.size, opened.getexif().get(ORIENTATION, 1)
            if opened.format == "TIFF":  # some versions of Pillow have turned the size already
                width, height = opened.tag_v2[WIDTH], opened.tag_v2[HEIGHT]
    except Exception as error:  # Pillow raises nearly anything
        raise ValueError(f"the picture cannot be read ({one_line(error)}); replace it") from error
    upright = (width, height) if orientation in TURNED else (height, width)
    if size in (None, upright):
        return *upright, None, orientation in range(2, 9) and (size is None or height == width or orientation < 5)
    if size == (height, width):
        return height, width, TURNED[orientation], False
    raise ValueError(
        f"the export says that it has {size[0]}x{size[1]} pixels (height x width), but the file has {upright[0]}x"
        f"{upright[1]}; put the picture there that was annotated, or export at its size"
    )
