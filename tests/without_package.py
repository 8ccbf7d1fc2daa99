"""A Python in which this package cannot be imported, but torch, transformers and whatever else is installed can."""

import functools
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch


PRELUDE = """
try:
    import allspark_hf
except ModuleNotFoundError:
    pass
else:
    raise AssertionError(f"{allspark_hf.__file__} can be imported: install the package editable, pip install -e .")
"""


@functools.cache
def _environment() -> tempfile.TemporaryDirectory:
    """
    A bare virtual environment, made once per session, removed at its end. It borrows the site-packages of the running
    interpreter as a plain folder: .pth files inside are not read, so that an editable install is not seen.
    """
    folder = tempfile.TemporaryDirectory(prefix="without_package_")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder.name], check=True)
    (site_packages,) = Path(folder.name).glob("lib/python*/site-packages")
    borrowed = dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))
    (site_packages / "borrowed.pth").write_text("\n".join(borrowed))
    return folder


def bare_python() -> Path:
    """The interpreter of that environment; PYTHONPATH must not be set where it is started."""
    return Path(_environment().name) / "bin" / "python"


SERVER = """
import gc, json, os, runpy, signal, sys, traceback
import torch, transformers.models.segformer.modeling_segformer, transformers.pipelines
from transformers import dynamic_module_utils

gc.freeze()  # what a fork need not look through at its end
for line in sys.stdin:
    command, folder, variables, threads, timeout = json.loads(line)
    if os.fork() == 0:
        signal.alarm(timeout)
        os.chdir(folder)
        os.environ |= variables
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # for the question whether code is trusted
        for descriptor, name in ((1, "../stdout"), (2, "../stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        torch.set_num_threads(threads)
        dynamic_module_utils.HF_MODULES_CACHE = os.path.join(variables["HF_HOME"], "modules")
        sys.argv, sys.path[0] = command, os.path.dirname(command[0])
        code = 1
        try:
            runpy.run_path(command[0], run_name="__main__")
            code = 0
        except Exception:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)  # which takes half a second less than to take everything apart
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def _variables(home: Path) -> dict[str, str]:
    return {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}


@functools.cache
def _server() -> subprocess.Popen:
    """A process without this package that has imported what takes long, and forks for each script it is given."""
    folder = Path(_environment().name)
    script = folder / "server.py"
    script.write_text(PRELUDE + SERVER, encoding="utf-8")
    environment = _inherited() | _variables(folder)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([bare_python(), script], cwd=folder, env=environment, text=True, **pipes)


def start_without_package(tmp_path: Path, code: str, *args, env: dict[str, str] | None = None, timeout: int = 300):
    """
    Runs `code` as a script, its `sys.argv[1:]` being `args`, in an empty folder, with Hugging Face's caches empty too.

    Args:
        tmp_path: The test's folder; `without_package` inside it gets the empty folder, the script and the caches, and
            a second run there finds what the first left in them.
        code: Python source.
        args: Passed on as strings.
        env: Environment variables besides today's, which start a Python anew; otherwise it is offline, and forked
            from one that has imported torch and transformers.
        timeout: In seconds.

    Returns:
        `subprocess.CompletedProcess` with text in `stdout` and `stderr`, whatever the exit code is.
    """
    home = tmp_path / "without_package"
    empty = home / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    script = home / "script.py"
    script.write_text(PRELUDE + code, encoding="utf-8")
    command = [str(script), *map(str, args)]
    if env is None:
        request = [command, str(empty), _variables(home), torch.get_num_threads(), timeout]
        print(json.dumps(request), file=_server().stdin, flush=True)
        code = int(_server().stdout.readline())
        return subprocess.CompletedProcess(
            command, code, *((home / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        )
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # which change the last bits of sums
    return subprocess.run(
        [bare_python(), *command],
        cwd=empty,
        env=_inherited() | _variables(home) | threads | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_without_package(tmp_path: Path, code: str, *args, **kwargs) -> str:
    """What `code` printed, see `start_without_package`; AssertionError with its error output if it failed."""
    done = start_without_package(tmp_path, code, *args, **kwargs)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
