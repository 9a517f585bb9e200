"""Checks of a configuration's fields, each with one message: the field, the value it has and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dit.errors import UserError

_KINDS = {str: "a text", bool: "true or false"}


def _plain(owner: object, name: str) -> Any:
    """A field's value; one scalar of NumPy or of another array library is replaced by the Python number or text that it is.

    A float32 becomes the float64 of exactly its value: `float(np.float32(1e-4))` is 9.999999747378752e-05.
    """
    value = getattr(owner, name)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
        object.__setattr__(owner, name, value)
    return value


def require_choice(value: object, choices: Sequence[str], what: str) -> None:
    """Refuse a value that is not one of the choices."""
    if value not in choices:
        raise UserError(f"unknown {what} '{value}': expected one of {', '.join(choices)}")


LARGEST = 2**63 - 1
"""The largest whole number that tables and files of logs hold."""


def require_positive(owner: object, *names: str) -> None:
    """Refuse fields that are no whole numbers above 0."""
    for name in names:
        value = _plain(owner, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
            most = f" of at most {LARGEST}" if isinstance(value, int) and value > LARGEST else ""
            raise UserError(f"{name} is {value!r:.60}: expected a positive whole number{most}")


def require_whole(owner: object, name: str, below: int | None = None) -> None:
    """Refuse a field that is no whole number from 0 on, or not below `below`."""
    value = _plain(owner, name)
    most = LARGEST if below is None else below - 1
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        wanted = (
            ", 0 or more" if below is None and not (isinstance(value, int) and value > most) else f" from 0 to {most}"
        )
        raise UserError(f"{name} is {value!r:.60}: expected a whole number{wanted}")


def require_number(
    owner: object, *names: str, low: float | int, high: float | int = math.inf, ends: str = "[]"
) -> None:
    """Refuse fields that are no finite numbers from `low` to `high`; `ends` are the interval's brackets, ( and ) without the end."""
    for name in names:
        value = _plain(owner, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        outside = not number or not low <= value <= high
        if outside or (value == low and ends[0] == "(") or (value == high and ends[1] == ")"):
            least = f"above {low:g}" if ends[0] == "(" else f"of {low:g} or more"
            most = "" if high == math.inf else f", below {high:g}" if ends[1] == ")" else f", at most {high:g}"
            raise UserError(f"{name} is {value!r}: expected a number {least}{most}")


def require_kind(owner: object, kind: type, *names: str) -> None:
    """Refuse fields that are of another kind: `str` or `bool`."""
    for name in names:
        if not isinstance(_plain(owner, name), kind):
            raise UserError(f"{name} is {getattr(owner, name)!r}: expected {_KINDS[kind]}")
