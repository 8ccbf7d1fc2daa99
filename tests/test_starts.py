"""Every script in a process of its own, which has none of the modules and paths of the tests."""

import json
import os
import subprocess
import sys

from in_process import SCRIPTS


STARTER = """
import json, os, runpy, sys
import allspark_hf  # what takes long, once for all

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


def test_every_script_starts():
    paths = sorted(map(str, SCRIPTS.glob("*.py")))
    done = subprocess.run([sys.executable, "-c", STARTER, *paths], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *shown, ended = done.stdout.splitlines()
    assert json.loads(ended) == dict.fromkeys(paths, 0), done.stderr
    assert all(os.path.basename(path) in "\n".join(shown) for path in paths)
