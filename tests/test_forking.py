"""The Python that is forked instead of started behaves as one that is started."""

import signal
import subprocess
import sys

import psutil
import pytest
from forking import python


SHOW = """
import json, os, sys
print(json.dumps([sys.argv, sys.path[0], os.getcwd(), os.environ["SHOWN"], sys.stdin.read()]))
sys.exit("an error")
"""
SLEEP = "import os, time; print(os.getpid()); time.sleep(60)"


def test_it_gets_what_it_is_given(tmp_path):
    (tmp_path / "show.py").write_text(SHOW)
    for command in (["-c", SHOW, "a", "b c"], [tmp_path / "show.py", "--x"], ["-m", "json.tool"], ["-c", "1 / 0"]):
        forked, started = (
            subprocess.run(
                [executable, *command], input="[1]", env={"SHOWN": "1"}, cwd="/", capture_output=True, text=True
            )
            for executable in (python(), sys.executable)
        )
        assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
        assert forked.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def test_it_has_nothing_of_the_tests():
    code = "import sys; print([name for name in sys.modules if name == 'conftest' or name[:5] == 'test_'], sys.path)"
    done = subprocess.run([python(), "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("[] ") and "/tests'" not in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_it(number):
    started = subprocess.Popen([python(), "-u", "-c", SLEEP], stdout=subprocess.PIPE)
    process = psutil.Process(int(started.stdout.readline()))
    started.send_signal(number)
    assert started.wait(timeout=30) == -number
    process.wait(timeout=30)  # for which the other end may take a moment
