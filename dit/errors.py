"""The one exception that is meant for people: a single clear line, shown without a traceback, exit code 2."""

from __future__ import annotations

import re

# Control letters but for tab and newline; what is invisible or turns the writing direction; line separators; lone surrogates; tags.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    """The text with a question mark for each letter that a terminal would obey or hide; tabs and newlines stay."""
    return _STEERING.sub("?", text)


class UserError(ValueError):
    """Bad input: the message names the value, what was expected and what to do. Never more than one line, nor a control letter."""

    def __init__(self, message: str):
        super().__init__(plain(" ".join(message.split())))
