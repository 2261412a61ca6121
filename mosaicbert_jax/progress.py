"""Progress of a long job on files: a bar on a terminal, lines in a log."""

import io
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

AFTER_SECONDS = 5.0
LOG_SECONDS = 15.0


def columns() -> int:
    """Of the terminal; 80 where it doesn't say."""
    return shutil.get_terminal_size((80, 24)).columns


def fitting(parts: Sequence[str], room: int) -> str:
    """The first parts, two spaces apart, as many as fit into so many characters."""
    text = ""
    for part in parts:
        longer = f"{text}  {part}" if text else part
        if len(longer) > room:
            break
        text = longer
    return text


def while_ticking(doing: str, work: Callable[[], Any]) -> Any:
    """Runs `work` in a thread and shows, after 5 seconds, that it is still running.

    For work that knows nothing of its progress. Ctrl-C ends the waiting at once.
    """
    found: list[Any] = []
    raised: list[BaseException] = []

    def run():
        try:
            found.append(work())
        except BaseException as error:  # it is raised below, in the thread that waits
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    is_terminal = sys.stderr.isatty()
    began = last_line = time.monotonic()
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        now = time.monotonic()
        if now - began < AFTER_SECONDS:
            continue
        text = f"{doing}: {tqdm.format_interval(now - began)}"
        if is_terminal:
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
        elif now - last_line >= LOG_SECONDS:
            last_line = now
            print(text, flush=True)
    if is_terminal and time.monotonic() - began >= AFTER_SECONDS:
        print(f"\r{' ' * (len(doing) + 12)}\r", end="", file=sys.stderr, flush=True)
    if raised:
        raise raised[0]
    return found[0]


class ByteProgress:
    """Bytes done of a total, with speed and ETA, once a job has taken 5 seconds. Usage:

    with ByteProgress("encoding", total) as progress:
        progress.to(done)               # as often as you like
    """

    def __init__(self, doing: str, total: int, start: int = 0):
        self._doing = doing
        self._start = start
        self._is_terminal = sys.stderr.isatty()
        self._began = self._last_line = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=doing,
            unit="B",
            unit_scale=True,
            delay=AFTER_SECONDS,
            leave=False,
            ncols=columns(),
            file=sys.stderr if self._is_terminal else io.StringIO(),
        )

    def to(self, done: int) -> None:
        """Moves on to `done` bytes in all."""
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._is_terminal or now - self._began < AFTER_SECONDS or done <= self._start:
            return
        if now - self._last_line >= LOG_SECONDS:
            self._last_line = now
            total = max(self._bar.total, done)
            speed = (done - self._start) / (now - self._began)
            left = tqdm.format_interval((total - done) / speed)
            print(
                f"{self._doing}: {done / max(total, 1):6.1%} of {total / 1e6:,.0f} MB, "
                f"{speed / 1e6:.1f} MB/s, {left} left",
                flush=True,
            )

    def __enter__(self) -> "ByteProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
