"""Pieces of Markdown: escaped text, tables, folded parts."""

import re
from collections.abc import Collection, Sequence


FOLD_FROM = 31  # rows; a screen or two


def escape(text: object) -> str:
    """Text that Markdown and HTML show as it is, also in a table; line breaks become blanks."""
    text = " ".join(str(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", text)


def code(text: object) -> str:
    """Text in a code span, also one that holds backticks; in a table its pipes are escaped."""
    text = " ".join(str(text).split())
    if r"\|" in text:  # in a table, a backslash before an escaped pipe ends the cell, and with it the code span
        return f"<code>{escape(text)}</code>"
    text = text.replace("|", r"\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def code_block(text: str, language: str = "") -> str:
    """A fenced block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[str] = ()) -> str:
    """A table of cells that are Markdown already; the first column and those in `words` are aligned left."""
    rules = ["---" if not column or name in words else "---:" for column, name in enumerate(header)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rules, *rows))


def folded(title: str, text: str) -> str:
    """A part that is shown on a click."""
    return f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>"


def percent(value: float | None) -> str:
    """A share in [0, 1] in percent with two decimals; "-" for None."""
    return "-" if value is None else f"{100 * value:.2f}"


def number(value: object) -> str:
    """A number as a reader writes it: thousands apart, no needless zeros; "not recorded" for None."""
    if value is None:
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}".rstrip("0").rstrip(".") if abs(value) >= 1 else f"{value:g}"


def duration(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds."""
    if seconds is None:
        return "not recorded"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (hours > 0 or minutes > 0)
    return " ".join([*parts, f"{rest} s"] if not hours else parts)


__all__ = ["FOLD_FROM", "code", "code_block", "duration", "escape", "folded", "number", "percent", "table"]
