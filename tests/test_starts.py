"""Every script in a process of its own, which has none of the modules and paths of the tests."""

import importlib.util
import re
import subprocess

import pytest
from forking import python
from in_process import SCRIPTS


DRAW = """
import sys
import numpy as np
from allspark_hf.figures import DRAWERS, write_figure

assert "matplotlib" not in sys.modules
arrays = {"models": ["a"], "sets": ["b"], "num_images": [1], "error": np.ones((1, 1)), "margin": np.zeros((1, 1))}
arrays["margin_ends"] = np.zeros((1, 1, 2))
write_figure(arrays, DRAWERS["1c"], "drawn", "picture", ["dark"])
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_every_script_starts(tmp_path, script):
    done = subprocess.run([python(), script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    command = re.search("`(allspark .*)` as a file", script.read_text(encoding="utf-8"))
    assert (command[1] if command else script.name) in done.stdout


def test_drawing_needs_no_pyplot(tmp_path):
    """Nor does computing figures need matplotlib."""
    if not importlib.util.find_spec("matplotlib"):
        pytest.skip("there is no matplotlib")
    done = subprocess.run([python(), "-c", DRAW], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
