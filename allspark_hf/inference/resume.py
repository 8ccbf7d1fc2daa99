"""Lets predictions go on where an earlier run stopped, and never mixes results of different settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.labeling.annotations import LABELME
from ..utils.files import PREDICTIONS, read_json_object, write_json
from .writers import ResultWriter


def is_done(writers: Sequence[ResultWriter], name: Path, image: Path, settings: Path) -> bool:
    """Whether all results of an image file exist, and none of them is older than this file or that of the settings."""
    try:
        changed = max(file.stat().st_mtime_ns for file in (image, settings))
        return all(path.stat().st_mtime_ns >= changed for writer in writers for path in writer.image_paths(name))
    except OSError:  # a file is missing
        return False


def result_files(writers: Sequence[ResultWriter], names: Sequence[Path]) -> list[Path]:
    """All files that a run writes, except its settings."""
    of_run = [path for writer in writers for path in writer.run_paths()]
    return of_run + [path for name in names for writer in writers for path in writer.image_paths(name)]


def check_output_dir(output_dir: Path):
    """Raises ValueError if the output folder is a file."""
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir {output_dir} is a file, but a folder is needed: choose another --output_dir.")


def check_existing(output_dir: Path, paths: Sequence[Path], resume: bool, overwrite: bool):
    """
    Raises ValueError if results exist that this run may neither replace nor complete.

    Args:
        output_dir (`Path`): folder of the results; need not exist.
        paths (`Sequence[Path]`): the results, of [`result_files`].
        resume (`bool`): whether to go on with an earlier run.
        overwrite (`bool`): whether to replace its results.
    """
    if overwrite and (output_dir / LABELME).exists():  # since its files may have been corrected by hand
        raise ValueError(f"{output_dir / LABELME} exists: remove it, or choose another --output_dir.")
    if overwrite or (resume and (output_dir / PREDICTIONS).exists()):
        return
    existing = [path for path in paths if path.exists()]
    if existing and resume:
        raise ValueError(
            f"{existing[0]} exists, but no {PREDICTIONS} that says how it was made, so --resume cannot go on: pass "
            "--overwrite to replace the results or choose another --output_dir."
        )
    if existing:
        raise ValueError(
            f"{len(existing)} of {len(paths)} results already exist (first: {existing[0]}): pass --resume to go on, "
            "--overwrite to replace them, or choose another --output_dir."
        )


def check_settings(output_dir: Path, settings: dict[str, Any]):
    """
    Raises ValueError if an earlier run in the folder had other settings.

    Args:
        output_dir (`Path`): folder of the results; need not exist.
        settings (`dict[str, Any]`): everything that the results depend on, as JSON holds it.
    """
    if not (output_dir / PREDICTIONS).exists():
        return
    earlier = read_json_object(output_dir / PREDICTIONS)
    for name in dict.fromkeys([*settings, *earlier]):
        if settings.get(name) != earlier.get(name):
            raise ValueError(
                f"The results in {output_dir} were made with {name} {earlier.get(name)!r}, not "
                f"{settings.get(name)!r}: give what {output_dir / PREDICTIONS} says to go on, pass --overwrite "
                "instead of --resume to replace them, or choose another --output_dir."
            )


def begin(output_dir: Path, settings: dict[str, Any], outdated: Sequence[Path]):
    """
    Prepares the folder of the results; only one process calls this.

    Args:
        output_dir (`Path`): folder of the results, which is made if it is missing.
        settings (`dict[str, Any]`): settings of the run.
        outdated (`Sequence[Path]`): files to remove.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    # Old files go before the settings are written, so that none is ever taken for a result of these settings.
    for path in outdated:
        path.unlink(missing_ok=True)
    # The time of equal settings stays, since it tells their results from older ones.
    if read_json_object(output_dir / PREDICTIONS) != settings:
        write_json(output_dir / PREDICTIONS, settings)
