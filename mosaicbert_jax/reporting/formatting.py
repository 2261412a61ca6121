"""Values as text of the page."""

import html
from typing import Any

from mosaicbert_jax.markdown import percent, printable

NOT_KNOWN = "—"


def text(value: Any) -> str:
    """Any value escaped for HTML, without characters that could reorder the text."""
    return html.escape(printable(str(value)))


def number(value: float | None, digits: int = 3) -> str:
    """With thousands separators and about `digits` significant digits."""
    if value is None:
        return NOT_KNOWN
    if isinstance(value, int) or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 10 ** (1 - digits):
        whole = len(f"{abs(value):.0f}") if abs(value) >= 1 else 1
        return f"{value:,.{max(digits - whole, 0)}f}"
    return f"{value:.2g}"


def large(value: float | None) -> str:
    """A count, shortened from a million on: 1.49 million."""
    if value is None:
        return NOT_KNOWN
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:,.2f} {name}"
    return f"{value:,.0f}"


def share(value: float | None) -> str:
    """In percent."""
    return NOT_KNOWN if value is None else percent(value)


def duration(seconds: float | None) -> str:
    """In the two largest units."""
    if seconds is None:
        return NOT_KNOWN
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, next_size, next_name in (
        (86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"),
    ):  # fmt: skip
        if whole >= size:
            return f"{whole // size:,} {name} {whole % size // next_size} {next_name}"
    return f"{whole} s"


def money(dollars: float | None) -> str:
    """Dollars and cents."""
    return NOT_KNOWN if dollars is None else f"${dollars:,.2f}"
