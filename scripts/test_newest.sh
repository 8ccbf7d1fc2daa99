#!/usr/bin/env bash
# The tests with the newest versions that pyproject.toml allows, installed anew into .venv-newest; .venv and the pins
# stay as they are. Arguments go to pytest. The newest torch may be a CUDA build of several GB: TORCH=torch==2.13.0 takes
# another release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="$PWD/.venv-newest"

"${PYTHON3:-python3}" -m venv --clear "$VENV"
"$VENV/bin/pip" install --quiet --disable-pip-version-check --upgrade "${TORCH:-torch}" --editable ".[dev]"
"$VENV/bin/pip" freeze --exclude-editable > "$VENV/versions.txt"
echo "Newest versions: $VENV/versions.txt"
"$VENV/bin/python" -m pytest "$@"
