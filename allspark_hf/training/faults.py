"""Errors that end a training, each with one sentence for the user."""

import errno
import pickle
import re
import shutil
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch.utils.data._utils import signal_handling

from ..data.reading import BadImageError
from ..utils.machine import NO_MEMORY, ran_out_of_memory
from ..utils.text import megabytes
from .storage import last_complete_checkpoint


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


WORKER_DIED = re.compile(r"DataLoader worker \(pid|</torch_")  # "</torch_": a worker's shared memory is gone
WORKER_LIVES = "in DataLoader worker process"  # which hands on an error of the dataset
LOADING = ("torch.utils.data", "torch.multiprocessing", "multiprocessing")
LOCK_FILE = "training.lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TORCH_WRITES = re.compile(r"inline_container|PytorchStreamWriter|iostream")  # in RuntimeErrors of torch.save
ERRNO = re.compile(r"os error (\d+)")  # in errors of safetensors, which are no OSError


class TrainingFault(RuntimeError):
    """Training cannot go on; the message is one sentence with the reason, what is left, and what to do."""


class SavingFailedError(TrainingFault):
    """A checkpoint or a model could not be written, e.g. because the disk is full."""


class WorkerDiedError(TrainingFault):
    """A process that loads data ended, e.g. because the system killed it for want of memory."""


class NoMemoryError(TrainingFault):
    """The memory of the GPU, or of the machine, was not enough."""


class FolderInUseError(TrainingFault):
    """Another training writes into the same folder."""


class NonFiniteError(TrainingFault):
    """The loss, or a weight, is NaN or infinite."""


def going_on(output_dir: str | Path) -> str:
    """The end of a sentence: which checkpoint is left, and how to go on from it."""
    last = last_complete_checkpoint(output_dir)
    if last is None:
        return f"there is no complete checkpoint in {output_dir} yet, so start again"
    return f"the last complete checkpoint is {last}, from which --resume_from_checkpoint true goes on"


@contextmanager
def telling_faults(output_dir: str | Path, num_workers: int, checkpoint: str | None = None) -> Iterator[None]:
    """
    For the training inside: its errors of unreadable images, damaged states, dead workers and too little memory get
    one sentence that also says which checkpoint is left.

    Args:
        output_dir (`str` or `Path`): folder of the run's checkpoints.
        num_workers (`int`): processes of each DataLoader; without any, no error is that of a dead worker.
        checkpoint (`str`, *optional*): the checkpoint that the training goes on from.

    Raises:
        TrainingFault: if a state in the checkpoint is damaged or could run code.
        BadImageError: if an image cannot be read, with its file, see [`read_example`].
        WorkerDiedError: if a process of a DataLoader ended.
        NoMemoryError: if memory ran out.
    """
    # The DataLoader's signal handler may interrupt the inner one at any moment, to report the same worker.
    outer, inner = (_telling_of_dead_workers(output_dir, num_workers) for _ in range(2))
    with outer, inner, telling_of_memory(output_dir):
        try:
            yield
        except BadImageError as error:
            raise BadImageError(f"{error} Training has stopped; {going_on(output_dir)}.") from error
        except pickle.UnpicklingError as error:
            raise TrainingFault(
                f"A state in {checkpoint} is damaged, or holds more than tensors and numbers, which could run code, "
                "so it is not loaded: copy the checkpoint again, or resume from another one."
            ) from error


@contextmanager
def telling_of_memory(output_dir: str | Path) -> Iterator[None]:
    """
    For the work inside: if memory runs out, one sentence says what to lower, and which checkpoint is left if any.

    Raises:
        NoMemoryError: if memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, TrainingFault) or not ran_out_of_memory(error):
            raise
        advice = (
            "--bf16 true on a GPU, --gradient_checkpointing true, a smaller --crop_size, a smaller "
            "--per_device_train_batch_size with as much more --gradient_accumulation_steps, or, if it ran out in an "
            "evaluation, --eval_mode sliding_window"
        )
        if WORKER_LIVES in str(error):
            advice = "fewer --dataloader_num_workers or a smaller --per_device_train_batch_size"
        parts = re.split(r"[.:;]\s", str(error))
        told = next((part for part in parts if any(phrase in part for phrase in NO_MEMORY)), type(error).__name__)
        end = f"; {going_on(output_dir)}." if last_complete_checkpoint(output_dir) else "."
        raise NoMemoryError(f"Memory ran out ({told}): take {advice}{end}") from error


@contextmanager
def _telling_of_dead_workers(output_dir: str | Path, num_workers: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        if not num_workers or isinstance(error, TrainingFault) or not _worker_is_gone(error):
            raise
        _end_reports()
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
        raise WorkerDiedError(
            f"A data loading worker died ({cause}), mostly for want of "
            "memory: set fewer --dataloader_num_workers, a smaller batch or --dataloader_prefetch_factor 1, or with "
            f"'Bus error' give /dev/shm more room; {going_on(output_dir)}."
        ) from error


def _end_reports():
    """Removes the DataLoader's signal handler, which may report the dead worker again at any moment."""
    for _ in range(2):  # the handler may interrupt the first try
        with suppress(RuntimeError, ValueError, AttributeError):  # outside the main thread, or on Windows
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal_handling._SIGCHLD_handler_set = False  # the next DataLoader sets it again


def _worker_is_gone(error: Exception) -> bool:
    """Whether the DataLoader reports a dead worker, or a tensor could not be received from a closed socket."""
    if isinstance(error, RuntimeError):
        return WORKER_DIED.search(str(error)) is not None
    if getattr(error, "filename", None) is not None or WORKER_LIVES in str(error):
        return False
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.startswith(LOADING) for name in modules)


@dataclass
class Saving:
    """What is being written at the moment, for the sentence of an error."""

    part: str = "its folder"


@contextmanager
def telling_of_saving(name: str, unfinished: Path, output_dir: str | Path) -> Iterator[Saving]:
    """
    For the saving inside: if it fails, the folder `unfinished` is removed, and nothing else.

    Args:
        name (`str`): what is saved.
        unfinished (`Path`): the folder that is written.
        output_dir (`str` or `Path`): folder of the run's checkpoints.

    Raises:
        SavingFailedError: if a file cannot be written.
    """
    saving = Saving()
    try:
        yield saving
    except (OSError, SafetensorError, RuntimeError) as error:
        cause, number = _why_not_written(error)
        written = [path for path in unfinished.rglob("*") if path.is_file()] if unfinished.is_dir() else []
        size = sum(path.stat().st_size for path in written)
        shutil.rmtree(unfinished, ignore_errors=True)
        room = f"{megabytes(free_bytes(output_dir))} free with what was written of it ({megabytes(size)}) removed"
        advice = "make room there" if number in FULL else "see to it that this folder can be written to"
        raise SavingFailedError(
            f"{name} could not be saved: writing {saving.part} failed ({cause}), {output_dir} has {room}; nothing "
            f"that was complete is touched, {advice}: {going_on(output_dir)}."
        ) from error


def _why_not_written(error: Exception) -> tuple[str, int | None]:
    """Reason and error number, if it has one, of a failed write; raises any other error again."""
    cause = str(error).strip()
    if isinstance(error, SafetensorError):
        found = ERRNO.search(cause)
        return cause, int(found.group(1)) if found else None
    if isinstance(error, OSError):
        return cause, error.errno
    if not TORCH_WRITES.search(cause):
        raise error
    return "the file could not be written whole", errno.ENOSPC  # torch does not give the reason


@contextmanager
def sole_training(output_dir: str | Path) -> Iterator[None]:
    """
    For the training inside: no other process trains in this folder meanwhile. The system releases the lock when the
    process ends, however it ends. On Windows, and on file systems without locks, nothing is locked.

    Args:
        output_dir (`str` or `Path`): an existing folder.

    Raises:
        FolderInUseError: if another process trains in it.
    """
    path = Path(output_dir) / LOCK_FILE
    with open(path, "w") as file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise FolderInUseError(
                    f"Another process is training in {output_dir}: choose another output_dir, or wait for it, or end "
                    "it (processes may live on when their launcher was killed)."
                ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def free_bytes(folder: str | Path) -> int:
    """Free bytes on the disk of a folder, or of the nearest folder above that exists."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
