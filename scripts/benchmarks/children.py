"""Every measurement in a process of its own: fresh memory, and what kills it leaves the others alone."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

from .timing import OUT_OF_MEMORY


# Processes are forked from a server that has imported these and done nothing else.
PRELOADED = ["torch", "datasets", "transformers.trainer", "allspark_hf.trainer", "benchmarks.serving"]
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_CONTEXT = multiprocessing.get_context(_METHOD)
if _METHOD == "forkserver":
    _CONTEXT.set_forkserver_preload(PRELOADED)


def in_fresh_process(function: Callable[..., dict], *arguments) -> dict:
    """
    Args:
        function (`Callable`): importable by name; its result must be picklable.
        arguments: what it is called with.

    Returns:
        `dict`: the result, or `{"error": one line}` if the function failed or its process was killed; a failure other
        than that memory ran out is also printed in full.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_call, args=(sender, function, arguments), daemon=False)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = None
    process.join()
    if result is not None:
        return result
    if process.exitcode == -signal.SIGKILL:
        return {"error": f"{OUT_OF_MEMORY}, or killed for another reason"}
    return {"error": f"the process ended with exit code {process.exitcode}"}


def _call(sender: Connection, function: Callable[..., dict], arguments: tuple):
    from .cases import silence
    from .peak import limit_memory

    silence()
    limit_memory()
    try:
        result = function(*arguments)
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).split())
        result = {"error": f"{type(error).__name__}: {reason}"[:300]}
    sender.send(result)
    sender.close()


__all__ = ["in_fresh_process"]
