"""Scripts run in the process of the tests, where the package is imported already: 5 s less each."""

import logging
import runpy
import signal
import sys
import traceback
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess

import pytest


SCRIPTS = Path(__file__).parents[1] / "scripts"


def run_script(script: str | Path, *arguments, cwd: Path | None = None, **environment) -> CompletedProcess:
    """
    Runs `python scripts/{script} {arguments}`, without a process of its own.

    Args:
        cwd: The folder to run in.
        environment: Environment variables besides today's. Libraries have read theirs already.

    Returns:
        `CompletedProcess` with the exit code, and as text what the script wrote to its output and error output.
    """
    path = SCRIPTS / script
    command = [str(path), *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as output, _errors() as errors:
        patch.setattr(sys, "argv", command)
        patch.syspath_prepend(path.parent)
        for name, value in environment.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        terminated = signal.getsignal(signal.SIGTERM)
        code = _exit_code(path)
        signal.signal(signal.SIGTERM, terminated)
    return CompletedProcess(command, code, output.getvalue(), errors.getvalue())


def _exit_code(path: Path) -> int:
    """Of a script, with what Python writes at its end."""
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextmanager
def _errors():
    """Collects what is written to `sys.stderr`, with log lines and warnings, as a new process would write them."""
    root, texts = logging.getLogger(), StringIO()
    handlers, level = root.handlers, root.level
    libraries = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    streams = {
        handler: handler.setStream(texts)
        for logger in libraries
        for handler in logger.handlers
        if type(handler) is logging.StreamHandler
    }
    root.handlers = []
    try:
        with redirect_stderr(texts), warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = lambda *given: texts.write(warnings.formatwarning(*given[:4]))
            yield texts
    finally:
        root.handlers = handlers
        root.setLevel(level)
        for handler, stream in streams.items():
            handler.setStream(stream)
