"""Text for people: errors on one line, sizes, tables."""

from collections.abc import Collection, Sequence


def one_line(error: object) -> str:
    """An error's message without line breaks; the name of its type where the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def megabytes(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] = ()) -> str:
    """
    A Markdown table.

    Args:
        header (`Sequence[str]`): names of the columns.
        rows (`Sequence[Sequence[str]]`): cells, Markdown already.
        left (`Collection[str]`): columns aligned left, besides the first one; all others are aligned right.
    """
    rules = ["---" if not column or name in left else "---:" for column, name in enumerate(header)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rules, *rows))


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: columns as wide as their longest cell, the first one aligned left, the others right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )
