"""How commands end, also as one of several processes, and what `allspark train` says then."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from ..utils.files import read_json


if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState


SHOWN_CLASSES = 5
Result = TypeVar("Result")


@contextmanager
def removing_new_folders(folder: str | Path) -> Iterator[None]:
    """If the code inside fails, removes `folder` and those above it that are new and empty."""
    path = Path(folder).absolute()
    new = [one for one in (path, *path.parents) if not one.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for one in new:
                one.rmdir()
        raise


def result_lines(trainer, metrics: dict[str, float]) -> list[str]:
    """What a training reached, in words, with the classes of the lowest IoU."""
    from ..evaluation.metrics import metric_name

    names = trainer.model.config.id2label.values()
    iou = {name: 100 * metrics.get(f"eval_iou_{metric_name(name)}", math.nan) for name in names}
    shown = sorted((name for name in iou if not math.isnan(iou[name])), key=iou.get)[:SHOWN_CLASSES]
    seconds = read_json(Path(trainer.args.output_dir) / "train_results.json")["train_runtime"]
    since = "" if trainer.checkpoints.resumed_from is None else " since it was resumed"
    score = f"{100 * metrics['eval_mean_iou']:.1f} %" if "eval_mean_iou" in metrics else "not measured"
    return [
        f"{trainer.args.method}: mIoU {score} on {len(trainer.eval_dataset)} validation images, after "
        f"{trainer.state.global_step} updates in {seconds:.0f} s{since}. It is the mean over classes of IoU: the "
        "pixels that model and mask both give a class, as a share of those that either does.",
        f"  {'lowest' if len(iou) > len(shown) else 'by class'}: "
        + ", ".join(f"{name} {iou[name]:.1f}" for name in shown)
        + f"; all numbers: {Path(trainer.args.output_dir) / 'eval_results.json'}",
    ]


def next_line(output_dir: str) -> str:
    """Where the model is, and how to use it."""
    return (
        f"The model is in {output_dir}, and report.html says how it went. Next: "
        f"allspark predict --model {output_dir} --input IMAGES --output_dir predictions"
    )


def run_script(
    main: Callable[[], Result], interrupted: str = "Interrupted; the same command goes on from here."
) -> Result:
    """Calls `main`; an interruption, or an error that a user can correct, ends the process with one sentence."""
    try:
        return main()
    except KeyboardInterrupt:
        sys.exit(interrupted)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def leave(accelerator: "Accelerator", failure: str | None = None):
    """
    Ends a script whose work is done; the last call of the script.

    Processes on CPUs wait for each other and then end at once, because gloo's threads outlive the interpreter, and
    sometimes abort a process that has done its work.

    Args:
        accelerator (`Accelerator`): the Trainer's.
        failure (`str`, *optional*): a sentence for the error output; the exit code is then 1.
    """
    if _backend() == "gloo":
        accelerator.wait_for_everyone()
        _leave_at_once(failure)
    accelerator.end_training()
    if failure:
        sys.exit(failure)


def fail(failure: str):
    """
    Ends a script that cannot go on. One of several processes ends at once, since the others may wait for it until the
    launcher (torchrun, accelerate launch) sees that a process is gone and ends them.

    Args:
        failure (`str`): a sentence for the error output; the exit code is 1.
    """
    if _backend() is not None:
        _leave_at_once(failure)
    sys.exit(failure)


def leave_with(state: "PartialState", code: int) -> NoReturn:
    """
    Ends one of several processes whose work is done, at once as [`leave`] does, all with the same exit code.

    Args:
        state (`PartialState`): state that the processes share.
        code (`int`): the exit code.
    """
    with suppress(RuntimeError):  # another process has died
        state.wait_for_everyone()
    _leave_at_once(None, code)


def _backend() -> str | None:
    """What several processes communicate by; None for a single process."""
    from torch import distributed

    return distributed.get_backend() if distributed.is_available() and distributed.is_initialized() else None


def _leave_at_once(failure: str | None, code: int = 0) -> NoReturn:
    if failure:
        print(failure, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if failure else code)


__all__ = ["fail", "leave", "leave_with", "next_line", "removing_new_folders", "result_lines", "run_script"]
