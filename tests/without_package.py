"""A Python in which this package cannot be imported, but torch, transformers and whatever else is installed can."""

import functools
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


def start_without_package(tmp_path: Path, code: str, *args, env: dict[str, str] | None = None, timeout: float = 300):
    """
    Runs `code` as a script, its `sys.argv[1:]` being `args`, in an empty folder, with Hugging Face's caches empty too.

    Args:
        tmp_path: The test's folder; `without_package` inside it gets the empty folder, the script and the caches, and
            a second run there finds what the first left in them.
        code: Python source.
        args: Passed on as strings.
        env: Environment variables besides today's. Offline unless it says `{"HF_HUB_OFFLINE": "0"}`.
        timeout: In seconds.

    Returns:
        `subprocess.CompletedProcess` with text in `stdout` and `stderr`, whatever the exit code is.
    """
    home = tmp_path / "without_package"
    (home / "empty").mkdir(parents=True, exist_ok=True)
    script = home / "script.py"
    script.write_text(PRELUDE + code, encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    home_variables = {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1"}
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # which change the last bits of sums
    environment = inherited | home_variables | threads | (env or {})
    return subprocess.run(
        [bare_python(), script, *map(str, args)],
        cwd=home / "empty",
        env=environment,
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
