"""Tables that are printed line by line, so that a part that is cut off has said what it found."""

from collections.abc import Callable, Iterable


def header(*columns: str) -> None:
    """Begins a Markdown table."""
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)


def row(*cells: object) -> None:
    """One line of it."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def attempt(name: str, cells: Callable[[], Iterable[object]], *, ours: bool = True) -> None:
    """A line with what `cells` returns; if it raises, with the error's first line.

    Args:
      ours: whether that is a failure of this project, which the command's status tells; another
        library's limits are only said.
    """
    try:
        row(name, *cells())
    except Exception as error:  # another library raises anything; the next line is to be printed
        said = (str(error).splitlines() or [""])[0][:160].replace("|", "/")
        row(name, f"{'FAILED' if ours else 'not to be had'}: {type(error).__name__}: {said}")
