"""scripts/constraints.txt has one version of every package that the tests' environment needs."""

import re
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


PINS = Path(__file__).parents[1] / "scripts" / "constraints.txt"
CUDA = re.compile(r"cuda-|nvidia-|triton$")  # which a CUDA build of torch pins itself


def needed(name: str, extras: set[str], found: set[tuple[str, ...]]):
    """Adds what a package needs, and what that needs: name and extras."""
    for line in distribution(name).requires or []:
        one = Requirement(line)
        if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        key = (canonicalize_name(one.name), *sorted(one.extras))
        if key not in found:
            found.add(key)
            needed(one.name, one.extras, found)


def test_everything_is_pinned_once():
    lines = PINS.read_text(encoding="utf-8").splitlines()
    assert "bash scripts/pin.sh" in "".join(lines[:2])
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    here = [canonicalize_name(pin.name) for pin in pins if pin.marker is None or pin.marker.evaluate()]
    assert len(here) == len(set(here)) and all(str(pin.specifier).startswith("==") for pin in pins)
    found: set[tuple[str, ...]] = set()
    needed("allspark-hf", {"dev"}, found)
    missing = {name for name, *_ in found if name != "allspark-hf" and not CUDA.match(name)} - set(here)
    assert len(found) > 90 and not missing, f"run bash scripts/pin.sh for {missing}"
