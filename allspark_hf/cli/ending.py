"""How a command ends, also as one of several processes."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator, PartialState

from ..evaluation.metrics import metric_name
from ..utils.files import read_json


SHOWN_CLASSES = 5


@contextmanager
def removing_new_folders(folder: str | Path) -> Iterator[None]:
    """A start inside: if that fails, a folder that was not there before goes again, unless something is in it."""
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
    """What a training reached, in words; every class is in `eval_results.json`."""
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
    """Where the model is, and what to do with it."""
    return (
        f"The model is in {output_dir}, and report.html says how it went. Next: "
        f"allspark predict --model {output_dir} --input IMAGES --output_dir predictions"
    )


def run_script(main: Callable[[], object]) -> None:
    """Calls `main`; an interruption or an error ends the process with one sentence."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from here.")
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def leave(accelerator: Accelerator, failure: str | None = None):
    """
    Ends a script whose work is done, the last thing that it calls.

    Processes on CPUs wait for each other and then end at once: gloo's threads outlive the interpreter, and now and
    then abort a process that has done its work.

    Args:
        accelerator (`Accelerator`): of the Trainer.
        failure (`str`, *optional*): a sentence for the error output; the exit code is then 1.
    """
    if _on_gloo():
        accelerator.wait_for_everyone()
        _leave_at_once(failure)
    accelerator.end_training()
    if failure:
        sys.exit(failure)


def fail(failure: str):
    """
    Ends a script that cannot go on. One of several processes ends at once: the others may wait for it in a collective
    operation, until the launcher (torchrun, accelerate launch) sees that one is gone and ends them.

    Args:
        failure (`str`): a sentence for the error output; the exit code is 1.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _leave_at_once(failure)
    sys.exit(failure)


def leave_with(state: PartialState, code: int) -> NoReturn:
    """
    Ends one of several processes whose work is done, all of them with one exit code; see [`leave`] for why at once.

    Args:
        state (`PartialState`): that the processes have in common.
        code (`int`): the exit code.
    """
    with suppress(RuntimeError):  # where another one has died
        state.wait_for_everyone()
    _leave_at_once(None, code)


def _on_gloo() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "gloo"


def _leave_at_once(failure: str | None, code: int = 0) -> NoReturn:
    if failure:
        print(failure, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if failure else code)


__all__ = ["fail", "leave", "leave_with", "next_line", "removing_new_folders", "result_lines", "run_script"]
