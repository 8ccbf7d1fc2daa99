#!/usr/bin/env bash
# `allspark demo` on a bare machine with Python >= 3.10: data, training, prediction and report on generated images.
#   bash scripts/demo.sh [OUTPUT_DIR]        default: outputs/demo
# A rerun keeps .venv and the data, and trains anew.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
OUT="${1:-$ROOT/outputs/demo}"
[[ "$OUT" = /* ]] || OUT="$PWD/$OUT"
source "$ROOT/scripts/environment.sh"

"$PYTHON" -m allspark_hf demo "$OUT"
