"""How far a pass over images is, on standard error: a bar on a terminal, a line every so often anywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType

EVERY_S = 10.0
"""Between plain lines."""


class ImageProgress:
    """Shows images done, of how many, and images/s since this process began; call it with both numbers. `shown` false shows nothing."""

    def __init__(self, title: str, shown: bool = True):
        self._title, self._shown = title, shown
        self._began = time.monotonic()
        self._first: int | None = None
        self._said = self._began
        self._bar = None
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=None, rate="")
            self._bar.start()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:  # the first batch compiles, and a resumed pass does not start at 0
            self._first, self._began = done, now
        rate = f"{(done - self._first) / (now - self._began):.1f} images/s" if done > self._first else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, rate=rate)
        elif self._shown and (now - self._said > EVERY_S or done == total):
            self._said = now
            print(f"{self._title}: {done:,} of {total:,} images {rate}".rstrip(), file=sys.stderr)

    def __enter__(self) -> ImageProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
