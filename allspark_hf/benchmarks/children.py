"""Every measurement in a process of its own: fresh memory, and what kills it leaves the others alone."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from ..utils.machine import ran_out_of_memory
from ..utils.text import one_line
from .cases import silence
from .peak import limit_memory
from .timing import OUT_OF_MEMORY


LONGEST_ERROR = 300


# Processes are forked from a server that has imported these and done nothing else.
PRELOADED = ["torch", "datasets", "transformers.trainer", "allspark_hf.training.trainer", f"{__package__}.serving"]


def _context(device: torch.device):
    """Forked where that is safe, which saves the imports; with CUDA, which does not survive a fork, started anew."""
    if device.type == "cuda" or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def in_fresh_process(device: torch.device, function: Callable[..., dict], *arguments) -> dict:
    """
    Args:
        device (`torch.device`): that the function works on.
        function (`Callable`): importable by name; its result must be picklable.
        arguments: what it is called with.

    Returns:
        `dict`: the result, or `{"error": one line}` if the function failed or its process was killed; a failure other
        than that memory ran out is also printed in full.
    """
    context = _context(device)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, device, function, arguments))
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


def _call(sender: Connection, device: torch.device, function: Callable[..., dict], arguments: tuple):
    silence()
    if device.type == "cpu":
        limit_memory()
    try:
        result = function(*arguments)
    except Exception as error:
        if ran_out_of_memory(error):
            result = {"error": OUT_OF_MEMORY}
        else:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {one_line(error)}"[:LONGEST_ERROR]}
    sender.send(result)
    sender.close()
