"""Parts of the design space: a part is one frozen record that says everything the house asks of it, and making it registers it.

Nothing else matches on a part's name. A part made in a user's own study file carries `source`, the hash of the code that defines it; a
part of the package has none. A part is looked up by name and source, so that changed code is another part. Nothing here imports JAX: what
needs it is named as "module:attribute" and loaded when it is asked for.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from dit.errors import UserError


@dataclass(frozen=True)
class Part:
    """What all parts have. `word` is what a kind is called in messages."""

    word: ClassVar[str] = "part"
    name: str
    source: str = ""

    def __post_init__(self) -> None:
        register(self)


P = TypeVar("P", bound=Part)
_PARTS: dict[tuple[type[Part], str, str], Part] = {}


def register(part: Part) -> None:
    """Make a part known by its name and source.

    Raises:
        UserError: if a part of the package has the name.
    """
    key = (type(part), part.name, part.source)
    if part.source and (type(part), part.name, "") in _PARTS:
        raise UserError(f"{part.word} '{part.name}' is one of the package's own: choose another name")
    _PARTS[key] = part


def named(kind: type[P], name: str, source: str = "") -> P:
    """The part of that kind, name and source.

    Raises:
        UserError: if there is none, with the nearest name there is.
    """
    found = _PARTS.get((kind, name, source))
    if found is None:
        raise UserError(
            f"unknown {kind.word} {name!r}: expected one of {', '.join(names(kind))}{nearest(name, names(kind))}"
        )
    return found  # type: ignore[return-value]  # registered under its own kind


def names(kind: type[Part]) -> list[str]:
    """Names of a kind's parts in the order they were made."""
    return list(dict.fromkeys(name for of, name, _ in _PARTS if of is kind))


def sources(kind: type[Part], name: str) -> list[str]:
    """The sources of a kind's parts of that name, in the order they were made."""
    return [source for of, known, source in _PARTS if of is kind and known == name]


def latest(kind: type[Part], name: str) -> str:
    """The source of the part of that name that was made last; empty where there is none."""
    return next(reversed(sources(kind, name)), "")


def nearest(name: Any, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for what resembles a known name, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def load(target: Any) -> Any:
    """What a record names as "module:attribute", imported; anything else is itself."""
    if not isinstance(target, str):
        return target
    module, _, attributes = target.partition(":")
    return operator.attrgetter(attributes)(importlib.import_module(module))


def without_defaults(fields: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """The fields that are not at their defaults, and those that have none."""
    return {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}


def digest(value: Any, length: int = 12) -> str:
    """Hash of a JSON value in canonical form (sorted keys, shortest floats)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]
