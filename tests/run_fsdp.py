"""run_training.py with FSDP on CPUs, see accelerators_on_cpu.py."""

import json
import sys

from accelerators_on_cpu import allow_fsdp
from run_training import run_all


if __name__ == "__main__":
    allow_fsdp()
    run_all(json.loads(sys.argv[1]))
