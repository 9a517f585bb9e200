"""What reaches a terminal is text alone: whatever a file says, it moves no cursor, sets no title and hides no letter.

`screened` stands around a whole command, so that nothing printed in it needs a second thought; see `dit.errors.plain` for what is replaced.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from dit.errors import plain


class Screened:
    """A text stream that writes control letters as question marks. `rich_proxied_file` is the stream itself, where rich draws its bars."""

    def __init__(self, stream: Any):
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Write the text, cleaned; as many letters as it has."""
        return self.rich_proxied_file.write(plain(text))

    def writelines(self, lines: Any) -> None:
        """Write each of the texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def steer(stream: Any, sequence: str) -> None:
    """Write a sequence of our own that does steer the terminal."""
    getattr(stream, "rich_proxied_file", stream).write(sequence)


@contextlib.contextmanager
def screened() -> Iterator[None]:
    """Standard output and error are screened within."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Screened(sys.stdout), Screened(sys.stderr)  # type: ignore[assignment]  # as files are used
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
