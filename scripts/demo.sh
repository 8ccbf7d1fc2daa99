#!/usr/bin/env bash
# The embedded data set, learned from a few labels with and without the unlabeled images; needs Python >= 3.10 only.
#   bash scripts/demo.sh [OUTPUT_DIR]        default: outputs/demo
# A rerun keeps .venv and the data, and trains anew.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
OUT="${1:-$ROOT/outputs/demo}"
[[ "$OUT" = /* ]] || OUT="$PWD/$OUT"
MARK="$OUT/made_by_demo.txt"
if [ -e "$OUT" ] && [ ! -f "$MARK" ] && { [ ! -d "$OUT" ] || [ -n "$(ls -A "$OUT")" ]; }; then
    echo "$OUT holds something that this demo did not make: give another folder, bash scripts/demo.sh OUTPUT_DIR." >&2
    exit 1
fi
source "$ROOT/scripts/environment.sh"

COUNTS=(--num_train 400 --num_labeled 24 --num_validation 60)
# What the data are made of; kept in the folder, it also marks the folder as this script's own.
MADE="${COUNTS[*]} $(cat allspark_hf/demo/data.py allspark_hf/demo/textures.py | cksum)"
if [ -f "$MARK" ] && [ "$(cat "$MARK")" = "$MADE" ] && [ -f "$OUT/data/classes.json" ]; then
    echo "Using the data in $OUT/data."
else
    mkdir -p "$OUT"
    printf '%s' "$MADE" > "$MARK"
    rm -rf "$OUT/data"
    "$PYTHON" -m allspark_hf.demo.data "$OUT/data" "${COUNTS[@]}"
fi
for METHOD in supervised allspark; do
    if [ -d "$OUT/$METHOD" ]; then
        echo "Replacing $OUT/$METHOD, made by an earlier run of this demo."
        rm -rf "${OUT:?}/$METHOD"
    fi
    echo "Training: $METHOD"
    "$PYTHON" scripts/train.py scripts/recipes/demo.yaml --method "$METHOD" --data_dir "$OUT/data" \
        --output_dir "$OUT/$METHOD"
done
"$PYTHON" scripts/compare_runs.py --data_dir "$OUT/data" --runs "$OUT/supervised" "$OUT/allspark" --output_dir "$OUT"
echo "The model is in $OUT/allspark"
