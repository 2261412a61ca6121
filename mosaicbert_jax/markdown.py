"""Tables and lists in Markdown that also read well in a terminal."""

import unicodedata

WIDTH = 100  # columns


def percent(share: float) -> str:
    """A share with one decimal, never rounded to none or to all; two digits where it is small."""
    if share in (0, 1):
        return f"{100 * share:.0f}%"
    if 0 < share < 1e-5:
        return "< 0.001%"
    if 0 < share < 1e-3:
        return f"{100 * share:.3f}%"
    if 0.9995 <= share < 1:
        return "> 99.9%"
    return f"{100 * share:,.1f}%"


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the singular for one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def table(header: list[str], rows: list[list[str]], left: tuple[int, ...] = (0,)) -> str:
    """A Markdown table, padded for the terminal; the columns not in `left` are right-aligned."""
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(3, *map(columns, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| "
        + " | ".join(
            padded(cell, width, right=column not in left)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in cells
    ]
    rules = ["-" * w if column in left else "-" * (w - 1) + ":" for column, w in enumerate(widths)]
    return "\n".join([lines[0], f"| {' | '.join(rules)} |", *lines[1:]])


def verbatim(text: str) -> str:
    """Text that is shown as it is."""
    return f"```text\n{text}\n```"


def wrapped(items: list[str]) -> str:
    """The items with two spaces between them, on lines of at most 100 columns."""
    lines = [""]
    for item in map(printable, items):
        item = shortened(item, WIDTH - 2)
        if lines[-1] and columns(lines[-1]) + 2 + columns(item) > WIDTH:
            lines.append("")
        lines[-1] += f"  {item}" if lines[-1] else item
    return "\n".join(lines)


def shortened(text: str, width: int) -> str:
    """Text of at most `width` columns, with … where something is omitted."""
    if columns(text) <= width:
        return text
    while columns(text) >= width:
        text = text[:-1]
    return text + "…"


def printable(text: str) -> str:
    """Without what could move the cursor: a vocabulary may hold anything."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def columns(text: str) -> int:
    """Columns of a terminal: combining marks take none, East Asian characters two."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def padded(text: str, width: int, right: bool = False) -> str:
    """Text with spaces up to `width` columns."""
    space = " " * (width - columns(text))
    return space + text if right else text + space
