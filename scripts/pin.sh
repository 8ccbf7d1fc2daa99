#!/usr/bin/env bash
# Writes scripts/constraints.txt: every package that `pip install -e ".[dev]"` installs, for each Python from 3.10 on.
#   bash scripts/pin.sh              keeps the versions that stand there, and adds what pyproject.toml has new
#   bash scripts/pin.sh --upgrade    takes the newest versions; --upgrade-package NAME those of one package
# Needs uv (pip install uv). torch stays as named here: other releases may have no small CPU build where it is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PINS=scripts/constraints.txt

uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --no-python-downloads \
    --constraint - --no-annotate --custom-compile-command "bash scripts/pin.sh" --quiet --output-file "$PINS" "$@" \
    <<< "torch==2.13.0"
# What only a CUDA build of torch needs, which names the versions itself.
sed -i.old -E '/^(cuda-|nvidia-|triton=)/d' "$PINS" && rm "$PINS.old"
