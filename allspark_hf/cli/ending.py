"""How commands end, also as one of several processes."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, TypeVar


if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState


Result = TypeVar("Result")


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
    Ends a script whose work is done; the last call of the script. A `failure` is a sentence for the error output, and
    makes the exit code 1.

    Processes on CPUs wait for each other and then end at once, because gloo's threads outlive the interpreter, and
    sometimes abort a process that has done its work.
    """
    if _backend() == "gloo":
        accelerator.wait_for_everyone()
        _leave_at_once(failure)
    accelerator.end_training()
    if failure:
        sys.exit(failure)


def fail(failure: str):
    """
    Ends a script that cannot go on, with a sentence for the error output and exit code 1. One of several processes
    ends at once, since the others may wait for it until the launcher (torchrun, accelerate launch) sees that a process
    is gone and ends them.
    """
    if _backend() is not None:
        _leave_at_once(failure)
    sys.exit(failure)


def leave_with(state: "PartialState", code: int) -> NoReturn:
    """Ends one of several processes whose work is done, at once as [`leave`] does, all with the same exit code."""
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
