# Sourced by demo.sh and test.sh: makes .venv once, with the pinned versions, and reuses it while the pins stay.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="$PWD/.venv"
PYTHON="$VENV/bin/python"
STAMP="$VENV/installed"
WANTED="$(cat scripts/constraints.txt pyproject.toml)"

if [ ! -f "$STAMP" ] || [ "$(cat "$STAMP")" != "$WANTED" ]; then
    base="${PYTHON3:-python3}"
    if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "Python 3.10 or newer is needed, $("$base" --version) was found: set PYTHON3 to a newer interpreter." >&2
        exit 1
    fi
    echo "Installing into $VENV (once) ..."
    "$base" -m venv "$VENV"
    install=("$PYTHON" -m pip install --quiet --disable-pip-version-check --constraint scripts/constraints.txt)
    # torch first: the pinned version is the CPU build where the package index offers one. setuptools too, which
    # then builds the package itself: an isolated build would take the newest.
    "${install[@]}" torch setuptools
    "${install[@]}" --no-build-isolation --editable ".[dev]"
    printf '%s' "$WANTED" > "$STAMP"
fi
