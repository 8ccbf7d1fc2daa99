"""What the tests called test_fuzz_* share: how much they try, strategies, and what counts as one sentence."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


# FUZZ=100 tries a hundred times as much, with other values each time: how these tests look for new bugs.
FACTOR = int(os.environ.get("FUZZ", "1"))


def fuzz(max_examples: int) -> settings:
    """Settings of a test: the same examples each time, unless FUZZ asks for a search."""
    return settings(
        max_examples=max_examples * FACTOR,
        deadline=None,
        derandomize=FACTOR == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# With what text files and JSON have been seen to hold: marks, separators of lines and paths, lone surrogates.
SEPARATORS = ("\0", "a\nb", "a\r\nb", "\u2028", "..", "../x", "/etc/passwd", "C:\\x", "a\\..\\b")
MARKUP = ("--push_to_hub", "<script>alert(1)</script>", "`", "|", "\\|", "]](", "&lt;")
ODD_TEXT = st.sampled_from([*SEPARATORS, *MARKUP, "", " ", "\ufeff", "nan", "\ud800", "x" * 5000, "-1", "1e999"])
TEXT = st.text(max_size=20) | ODD_TEXT
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 255, 256, 2**31, 2**63, 10**30, 0.5])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
JSON = st.recursive(
    SCALARS, lambda part: st.lists(part, max_size=4) | st.dictionaries(TEXT, part, max_size=4), max_leaves=8
)


def is_one_sentence(error: BaseException) -> bool:
    """Whether a message can stand after its type on one line, and says something."""
    text = str(error)
    return len(text.split()) >= 3 and "\n" not in text.strip() and "Traceback" not in text
