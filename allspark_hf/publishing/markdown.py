"""Pieces of Markdown, and the Jinja environment of cards, in which everything else is escaped."""

import json
import math
import re
from collections.abc import Collection, Sequence

import jinja2
from markupsafe import Markup

from ..utils.files import HUB_ID
from ..utils.text import markdown_table, megabytes


FOLD_FROM = 31  # rows; a screen or two
NOT_RECORDED = "not recorded"


# ---- Text; what these functions return is Markdown, of type Markup, and is not escaped again ----


def escape(value: object) -> Markup:
    """Text that Markdown and HTML show as it is, also in a table; line breaks become blanks."""
    if isinstance(value, Markup):
        return value
    text = " ".join(str(NOT_RECORDED if _is_missing(value) else value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", text))


def code(value: object) -> Markup:
    """Text in a code span, also one that holds backticks; in a table its pipes are escaped."""
    text = " ".join(str(value).split())
    if r"\|" in text:  # in a table, a backslash before an escaped pipe ends the cell, and with it the code span
        return Markup(f"<code>{escape(text)}</code>")
    text = text.replace("|", r"\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return Markup(f"{ticks}{pad}{text}{pad}{ticks}")


def code_block(text: str, language: str = "") -> Markup:
    """A fenced block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def hub_link(name: str, kind: str = "") -> Markup:
    """A name as code, and as a link if it is a Hub id; `kind` is "datasets/" for a data set."""
    is_id = HUB_ID.fullmatch(name) or (kind and re.fullmatch(r"\w[\w.-]*", name))
    return Markup(f"[{code(name)}](https://huggingface.co/{kind}{name})") if is_id else code(name)


def table(header: Sequence[str], rows: Sequence[Sequence[object]], left: Collection[str] = ()) -> Markup:
    """A table; the first column and those named in `left` are aligned left."""
    return Markup(markdown_table(header, [[escape(cell) for cell in row] for row in rows], left))


def folded(text: Markup, title: str, rows: int) -> Markup:
    """A table as it is, or shown on a click if it has many rows."""
    if rows < FOLD_FROM:
        return text
    return Markup(f"<details>\n<summary>{escape(title)}</summary>\n\n{str(text).strip()}\n\n</details>")


def paragraph(text: str) -> Markup:
    """Lines of the template as one."""
    return Markup(" ".join(text.split()))


def item(text: str) -> Markup:
    """Lines of the template as a point of a list."""
    return Markup(f"- {paragraph(text)}\n")


def argument_rows(arguments: dict | None) -> list[list[Markup]]:
    """Name and value of arguments as a recipe has them, a list as on the command line; empty ones are left out."""
    given = {name: value for name, value in (arguments or {}).items() if value is not None and value != []}
    return [[code(name), code(_plain(value))] for name, value in given.items()]


def _plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# ---- Numbers; what is no number, as in a file that somebody edited, is shown as it is ----


def _is_missing(value: object) -> bool:
    return (
        value is None or isinstance(value, jinja2.Undefined) or (isinstance(value, float) and not math.isfinite(value))
    )


def percent(value: object) -> str:
    """A share in [0, 1] in percent with two decimals; "-" if it is missing."""
    if _is_missing(value):
        return "-"
    return f"{100 * value:.2f}" if isinstance(value, int | float) else str(value)


def percents(values: dict, names: Collection[str]) -> list[str]:
    """Those of these names, in percent."""
    return [percent(values.get(name)) for name in names]


def number(value: object) -> str:
    """A number as a reader writes it: thousands apart, no needless zeros; "not recorded" if it is missing."""
    if _is_missing(value):
        return NOT_RECORDED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.2f}".rstrip("0").rstrip(".") if abs(value) >= 1 else f"{value:g}"


def duration(seconds: object) -> str:
    """Seconds as hours, minutes and seconds."""
    if _is_missing(seconds) or not isinstance(seconds, int | float):
        return number(seconds)
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (hours > 0 or minutes > 0)
    return " ".join([*parts, f"{rest} s"] if not hours else parts)


def plural(count: object, singular: str, several: str | None = None) -> str:
    """ "1 class", "1,200 classes"."""
    return f"{number(count)} {singular if count == 1 else several or singular + 's'}"


def environment() -> jinja2.Environment:
    """For the card's template: a value is escaped unless it is Markdown already; a missing one is "not recorded"."""
    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.ChainableUndefined}
    made = jinja2.Environment(**options, keep_trailing_newline=True, autoescape=True, finalize=escape)
    pieces = (code, code_block, hub_link, folded, paragraph, item, argument_rows)
    numbers = (percent, percents, number, duration, megabytes)
    made.filters |= {function.__name__: function for function in pieces + numbers}
    made.globals |= {"table": table, "plural": plural}
    return made
