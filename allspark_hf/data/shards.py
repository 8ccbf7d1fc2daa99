"""The files of a stream: tar archives in WebDataset's form, or parquet, here or at any address that fsspec knows."""

import logging
from pathlib import Path

import datasets
from fsspec.core import url_to_fs

from ..utils.files import read_text
from ..utils.text import one_line


logger = logging.getLogger(__name__)

KINDS = {".tar": "webdataset", ".tar.gz": "webdataset", ".tgz": "webdataset", ".parquet": "parquet"}
LIST = ".txt"
END_OF_TAR = bytes(1024)  # two empty blocks; if they are missing, tarfile stops silently where a file was cut


def names_shards(name: str) -> bool:
    """Whether a name is that of a shard, a pattern of shards or a list of them, and not of a data set or a folder."""
    return name.endswith((*KINDS, LIST)) and not Path(name).is_dir()


def shard_files(name: str) -> list[str]:
    """
    Args:
        name (`str`): a file `*.tar`, `*.tar.gz`, `*.tgz` or `*.parquet`, a pattern of such files
            (`shards/*.tar`, `hf://datasets/user/name/*.parquet`), or a file `*.txt` with one of these a line, relative
            to its own folder.

    Returns:
        `list[str]`: the files, sorted within each pattern.

    Raises:
        ValueError: if a name stands for no file, or the files are of two kinds.
    """
    patterns = [name]
    if name.endswith(LIST):
        if not Path(name).is_file():
            raise ValueError(f"There is no list of shards {name}: give a text file with a shard a line.")
        lines = [line.strip() for line in read_text(Path(name)).splitlines() if line.strip()]
        patterns = [line if "://" in line else str(Path(name).parent / line) for line in lines]
    files = [file for pattern in patterns for file in _matching(pattern)]
    kinds = {_kind(file) for file in files}
    if len(kinds) != 1 or None in kinds:
        raise ValueError(f"{name} names {len(files)} shards, which must all be tar archives or all parquet files.")
    return files


def _matching(pattern: str) -> list[str]:
    system, path = url_to_fs(pattern)
    is_pattern = any(sign in path for sign in "*?[")
    found = sorted(system.glob(path)) if is_pattern else [path] if system.exists(path) else []
    if not found:
        raise ValueError(f"There is no shard {pattern}: give the path or address of a file, or a pattern of some.")
    return found if "file" in system.protocol else [system.unstrip_protocol(one) for one in found]


def _kind(file: str) -> str | None:
    return next((kind for ending, kind in KINDS.items() if file.endswith(ending)), None)


def open_shards(name: str, skip_bad_files: bool = False) -> datasets.IterableDataset:
    """
    A stream of the files that a name stands for, see [`shard_files`]. With `skip_bad_files`, it goes on if a file
    cannot be read, and names such a file when its turn comes.

    Raises:
        ValueError: if there is no such file, or the first file (with `skip_bad_files`, every file) cannot be read.
    """
    files = shard_files(name)
    kind = _kind(files[0])
    for number, file in enumerate(files):
        try:
            features = datasets.load_dataset(kind, data_files=[file], split="train", streaming=True).features
        # What a broken archive raises depends on its format.
        except Exception as error:
            if skip_bad_files and number + 1 < len(files):
                continue
            raise ValueError(
                f"The shard {file} cannot be read ({one_line(error)}): restore it, take it out of "
                f"--unlabeled_dataset_name, or leave out what cannot be read with --skip_bad_files."
            ) from error
        break
    # A readable file comes first, because datasets reads the columns from the first file.
    files = files[number:] + files[:number]
    return datasets.load_dataset(kind, data_files=files, features=features, split="train", streaming=True)


def name_of_shard(shard: datasets.IterableDataset, number: int) -> str:
    """The file of a shard, or its number if it has no file; datasets has no public function for this."""
    source = getattr(shard, "_ex_iterable", None)
    while hasattr(source, "ex_iterable"):
        source = source.ex_iterable
    lists = [value for value in getattr(source, "kwargs", {}).values() if isinstance(value, list) and len(value) == 1]
    return next((value[0] for value in lists if isinstance(value[0], str)), f"Shard {number}")


def require_end(file: str):
    """Raises ValueError if a tar archive, here or on the Hub, was cut; a cut between two images shows nowhere else."""
    if not file.endswith(".tar") or ("://" in file and not file.startswith("hf://")):
        return
    system, path = url_to_fs(file)
    if system.cat_file(path, start=-len(END_OF_TAR)) != END_OF_TAR:
        raise ValueError("it has no end, so images may be missing")
