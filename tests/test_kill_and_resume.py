"""Kills at random moments: see kill_and_resume.py, which is also there to be run by hand, with more of them."""

import re
import subprocess
from pathlib import Path

from forking import python


SCRIPT = Path(__file__).with_name("kill_and_resume.py")


def test_kills():
    done = subprocess.run(
        [python(), SCRIPT, "--kills", "9", "--seed", "0"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    kills = [re.fullmatch(r"kill (\d+): run \d+, (.+?): .+; last complete .+", line) for line in lines]
    kills = [match.groups() for match in kills if match]
    assert [number for number, _ in kills] == [str(number + 1) for number in range(9)]
    assert {way for _, way in kills} == {"time", "operation", "half a file"}
    assert any(" bytes; last" in line for line in lines)  # at least one file was cut short
    assert lines[-1].startswith("9 kills, ") and lines[-1].endswith("all ends the same")
