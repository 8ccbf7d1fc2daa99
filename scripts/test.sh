#!/usr/bin/env bash
# Lint and tests on a bare machine with Python >= 3.10. Arguments go to pytest: -n 0 runs all in one process.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
unset PYTHONDONTWRITEBYTECODE  # or every process compiles the package, and pytest all tests, anew
"$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
