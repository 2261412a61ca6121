"""Progress of a long job on files: a bar on a terminal, lines in a log."""

import io
import sys
import time
from types import TracebackType

from tqdm import tqdm

AFTER_SECONDS = 5.0
LOG_SECONDS = 15.0


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
