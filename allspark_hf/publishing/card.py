"""The card of a trained model: README.md of its repository, rendered from the records in its folder."""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import jinja2
from huggingface_hub import ModelCard
from huggingface_hub.errors import StrictDataclassError
from PIL import Image

from ..utils.files import whole_file
from ..utils.text import one_line
from .content import content
from .markdown import environment
from .records import EXAMPLES_DIR, SHOWN_IMAGES, UNEXPECTED, Records, read_records


logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
MARKER = re.compile(r"\n*<!-- allspark-hf card (\w+) -->\s*$")


# ---- Text ----


def render_card(records: Records, repo_id: str | None = None, model_name: str | None = None) -> str:
    """
    The text of a card, with a marker at its end that tells whether somebody changed the card later.

    Args:
        records ([`Records`]): the records in the model's folder.
        repo_id (`str`, *optional*): `user/name` of the repository; without one, examples name the folder.
        model_name (`str`, *optional*): title of the card; defaults to the name in `repo_id`, else the folder's.

    Raises:
        ValueError: if a record is not as this package writes it.
    """
    template = Path(__file__).with_name("template.md").read_text(encoding="utf-8")
    try:
        text = environment().from_string(template).render(content(records, repo_id, model_name))
        text = re.sub(r"\n{3,}", "\n\n", text)
        ModelCard(text)  # raises ValueError if the metadata cannot be read back
        return mark(text)
    except (*UNEXPECTED, StrictDataclassError, jinja2.TemplateError) as error:
        what = f"{type(error).__name__}: {one_line(error)}"[:200]
        raise ValueError(
            f"Some record in {records.folder} (config.json, run_record.json, trainer_state.json, an evaluation or an "
            f"export) is not as this package writes it ({what}): correct it, or remove it."
        ) from error


def mark(text: str) -> str:
    """A card's text with a new marker at its end."""
    text = MARKER.sub("", text).strip() + "\n"
    return f"{text}\n<!-- allspark-hf card {_digest(text)} -->\n"


def _digest(text: str) -> str:
    """Digest of the text without line ends and blanks at line ends, which editors and git change."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def is_as_rendered(text: str) -> bool:
    """Whether a card is as this package rendered it."""
    found = MARKER.search(text)
    return found is not None and _digest(text[: found.start()]) == found.group(1)


# ---- Files ----


def write_model_card(
    folder: str | Path,
    repo_id: str | None = None,
    model_name: str | None = None,
    example_images: Sequence[str | Path] = (),
) -> Path:
    """
    Renders `folder/README.md` from the records in the folder. The card says what was not recorded.

    A README.md that a person changed, or that another program made, is kept as README.old.md (or .old.2.md, ...), and
    a warning says so. Example images are copied to `folder/examples`, and are in all later cards too.

    Args:
        folder (`str` or `Path`): folder of a trained model.
        repo_id (`str`, *optional*): `user/name` of the repository it is to be published in.
        model_name (`str`, *optional*): title of the card; defaults to the name in `repo_id`, else the folder's.
        example_images (`Sequence[str | Path]`): image files or `https://` addresses for the Hub's widget.

    Returns:
        `Path`: README.md.

    Raises:
        ValueError: if there is no model in the folder, a record is broken, or an example is no image.
    """
    folder = Path(folder)
    records = read_records(folder)
    addresses = [str(image) for image in example_images if str(image).startswith("https://")]
    files = [Path(image) for image in example_images if not str(image).startswith("https://")]
    for image in files:
        _check_image(image)
    examples = [_add_example(folder, image) for image in files]
    records.examples = list(dict.fromkeys([*records.examples, *examples, *addresses]))
    return write_card(folder / CARD_FILE, render_card(records, repo_id, model_name))


def card_to_publish(
    folder: str | Path,
    repo_id: str | None = None,
    model_name: str | None = None,
    example_images: Sequence[str | Path] = (),
) -> Path:
    """
    The card `folder/README.md`, which is rendered again unless a person changed a rendered one; a warning then says
    so.

    Args:
        folder, repo_id, model_name, example_images: as for [`write_model_card`].

    Raises:
        ValueError: as [`write_model_card`], and if example images are given for a card that was changed by hand.
    """
    path = Path(folder) / CARD_FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if MARKER.search(text) is None or is_as_rendered(text):
        return write_model_card(folder, repo_id, model_name, example_images)
    if example_images:
        raise ValueError(
            f"{path} was changed by hand, and example images would render it anew: name them in it yourself, or "
            "render it first (scripts/render_card.py keeps yours as README.old.md)."
        )
    logger.warning(
        "%s was changed by hand, and is published as it is; scripts/render_card.py renders it from the records.", path
    )
    return path


def write_card(path: Path, text: str) -> Path:
    """Writes a rendered card; an older card that is not as rendered is kept under another name."""
    if path.is_file() and not is_as_rendered(path.read_text(encoding="utf-8", errors="replace")):
        numbers = ("", *(f".{count}" for count in range(2, 10_000)))
        names = (path.with_name(f"{path.stem}.old{number}{path.suffix}") for number in numbers)
        kept = next(name for name in names if not name.exists())
        os.replace(path, kept)
        logger.warning("%s was not as this program renders it, changed by hand perhaps: kept as %s.", path, kept.name)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return path


def _check_image(path: Path):
    if path.suffix.lower() not in SHOWN_IMAGES:
        raise ValueError(f"The example image {path} is none of {', '.join(SHOWN_IMAGES)}: give an image file.")
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"The example image {path} cannot be read ({error}): give an image file.") from error


def _add_example(folder: Path, image: Path) -> str:
    """Copies an image into the folder unless it is there; returns its path in the folder."""
    target_dir, pixels = folder / EXAMPLES_DIR, image.read_bytes()
    for count in range(1, 1000):
        target = target_dir / (image.name if count == 1 else f"{image.stem}_{count}{image.suffix}")
        if not target.exists():
            target_dir.mkdir(exist_ok=True)
            shutil.copyfile(image, target)
        if target.read_bytes() == pixels:
            return f"{EXAMPLES_DIR}/{target.name}"
    raise ValueError(f"{target_dir} holds 1000 images called {image.name}: rename the example.")
