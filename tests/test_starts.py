"""Every script in a process of its own, which has none of the modules and paths of the tests."""

import importlib.util
import json
import subprocess
import sys

from in_process import SCRIPTS


STARTER = """
import json, os, runpy, sys
import allspark_hf.figures  # the whole package, which takes long, once for all
assert "matplotlib" not in sys.modules

ended = {}
for path in sys.argv[1:]:
    sys.stdout.flush()
    if os.fork() == 0:
        sys.argv, sys.path[0] = [path, "--help"], os.path.dirname(path)
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as stop:
            sys.stdout.flush()
            os._exit(stop.code or 0)
        os._exit(99)
    ended[path] = os.wait()[1]
print(json.dumps(ended))
"""
DRAW = """
import sys
import numpy as np
from allspark_hf.figures import DRAWERS, write_figure

arrays = {"models": ["a"], "sets": ["b"], "num_images": [1], "error": np.ones((1, 1)), "margin": np.zeros((1, 1))}
write_figure(arrays, DRAWERS["1c"], "drawn", "picture", ["dark"])
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
sys.exit()
"""


def test_every_script_starts_and_drawing_needs_no_pyplot(tmp_path):
    """Nor does computing figures need matplotlib."""
    paths = sorted(map(str, SCRIPTS.glob("*.py")))
    (tmp_path / "draw.py").write_text(DRAW)
    if importlib.util.find_spec("matplotlib"):
        paths.append(str(tmp_path / "draw.py"))
    command = [sys.executable, "-c", STARTER, *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *shown, ended = done.stdout.splitlines()
    assert json.loads(ended) == dict.fromkeys(paths, 0), done.stderr
    assert all(path.name in "\n".join(shown) for path in SCRIPTS.glob("*.py"))
