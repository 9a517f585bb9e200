"""Parts of the design space: a part is one frozen record that says everything the house asks of it, and making it registers it.

Nothing else matches on a part's name. A part made by the user's own code carries `source`, the hash of the code that defines it; a part
of the package has none. A part is looked up by name and source, so that changed code is another part. Of a user's part a study's folder
holds what is plain data: `as_data` tells it, `known` makes it a record again without running anything. Nothing here imports JAX: what
needs it is named as "module:attribute" and loaded when it is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import json
import operator
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from dit.design.sources import source_of
from dit.errors import UserError


@dataclass(frozen=True)
class Part:
    """What all parts have.

    Attributes:
        word: what a kind is called in messages.
        beside: fields that change no result, such as how a part is drawn; they are not in its source.
        source: the hash of the user's code that defines it, found by itself; nothing for a part of the package.
    """

    word: ClassVar[str] = "part"
    beside: ClassVar[tuple[str, ...]] = ("label", "colour", "marker", "dash", "count")
    name: str
    source: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if not self.source and _is_users():
            object.__setattr__(self, "source", source_of(f"{self.word} '{self.name}'", self.hashed()))
        register(self)

    def fields(self) -> dict[str, Any]:
        """Its fields by name."""
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}

    def hashed(self) -> dict[str, Any]:
        """The values that its source is the hash of."""
        return {name: value for name, value in self.fields().items() if name not in ("source", *self.beside)}

    def as_data(self, runs: Iterable[Any] = ()) -> dict[str, Any]:
        """What is plain data of it, for a study's record; `runs` are those of the study."""
        return {"kind": type(self).__name__, **{name: one for name, one in self.fields().items() if _is_plain(one)}}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> dict[str, Any]:
        """The fields that `as_data` told of."""
        return {name: _frozen(one) for name, one in data.items()}


P = TypeVar("P", bound=Part)
_PARTS: dict[tuple[type[Part], str, str], Part] = {}
_MADE: dict[tuple[type[Part], str], Part] = {}
"""The user's parts by name: of the study that is being loaded, else all that this process made."""
_loading = False


def register(part: Part) -> None:
    """Make a part known by its name and source.

    Raises:
        UserError: if a part of the package, or another of the same study's file, has the name.
    """
    key = (type(part), part.name)
    if part.source and (*key, "") in _PARTS:
        raise UserError(f"{part.word} '{part.name}' is one of the package's own: choose another name")
    if part.source and _loading and key in _MADE:
        raise UserError(f"{part.word} '{part.name}' is made twice in the study's file: choose another name")
    if part.source:
        _MADE[key] = part
        _PARTS.pop((*key, part.source), None)  # the one made last comes last
    _PARTS[*key, part.source] = part


@contextlib.contextmanager
def of_a_study() -> Iterator[None]:
    """Parts made within are one study's: no two of a kind may share a name, and a name means the part of this study."""
    global _loading, _MADE
    before, _loading, _MADE = (_loading, _MADE), True, {}
    try:
        yield
    finally:
        _loading, _MADE = before


def made() -> list[Part]:
    """The user's parts of the study that is being loaded."""
    return list(_MADE.values())


def named(kind: type[P], name: str, source: str = "") -> P:
    """The part of that kind, name and source.

    Raises:
        UserError: if there is none, with the nearest name there is.
    """
    found = _PARTS.get((kind, name, source))
    if found is None and source:
        raise UserError(
            f"{kind.word} '{name}' ({source}) is of a study's own file, which was not read: give its folder"
        )
    if found is None:
        known = names(kind)
        raise UserError(f"unknown {kind.word} '{name}': expected one of {', '.join(known)}{nearest(name, known)}")
    return found  # type: ignore[return-value]  # registered under its own kind


def find(kind: type[P], text: str) -> P:
    """The part that `name` or `name@source` stands for; of several sources of a name the study's, else the one made last.

    Raises:
        UserError: if there is none, with the nearest name there is.
    """
    name, _, source = text.partition("@")
    made = None if source or (kind, name, "") in _PARTS else latest(kind, name)
    if made is None:
        return named(kind, name, source)
    _MADE[kind, name] = made  # of a module that was imported before: the study's all the same
    return made


def settle(owner: Any, field: str, kind: type[Part], name: str, required: bool = True) -> None:
    """Fill a field of a frozen configuration with the source of the part that it names, where it is not given.

    Raises:
        UserError: if there is no such part and one is `required`.
    """
    if not getattr(owner, field) and (required or latest(kind, name)):
        object.__setattr__(owner, field, find(kind, name).source)


def reference_to(part: Part) -> str:
    """How a part is written where its source has no field of its own: its name, and with a source `name@source`."""
    return f"{part.name}@{part.source}" if part.source else part.name


def written(kind: type[P], chosen: str | P, required: bool = True) -> Any:
    """The same for a part or its name. What has a source stays as it is: its code may not be at hand where a folder is only read.

    Raises:
        UserError: for a name that is no part's and is `required`; others stay as they are.
    """
    if not isinstance(chosen, str):
        return reference_to(chosen) if isinstance(chosen, kind) else chosen
    is_known = "@" not in chosen and (required or latest(kind, chosen) is not None)
    return reference_to(find(kind, chosen)) if is_known else chosen


def is_known(kind: type[Part], name: str, source: str = "") -> bool:
    """Whether there is a part of that kind, name and source."""
    return (kind, name, source) in _PARTS


def latest(kind: type[P], name: str) -> P | None:
    """The part of that name of any source: the study's that is being loaded, else the one made last."""
    made = _MADE.get((kind, name))
    return made or next((part for part in reversed(every(kind)) if part.name == name), None)  # type: ignore[return-value]


def names(kind: type[Part]) -> list[str]:
    """Names of a kind's parts in the order they were made."""
    return list(dict.fromkeys(part.name for part in every(kind)))


def every(kind: type[P]) -> list[P]:
    """All parts of a kind, in the order they were made."""
    return [part for (of, _, _), part in _PARTS.items() if of is kind]  # type: ignore[misc]  # registered under its own kind


def builtin(kind: type[P]) -> dict[str, P]:
    """The package's own parts of a kind by name, in the order they were made."""
    return {part.name: part for part in every(kind) if not part.source}


def known(kind: type[P], data: dict[str, Any]) -> P:
    """The part that `as_data` told of, as a record of data alone: what was code refuses to be called.

    Raises:
        UserError: for fields that the kind does not have, or a part without a source.
    """
    fields = kind.from_data({name: value for name, value in data.items() if name != "kind"})
    found = _PARTS.get((kind, str(fields.get("name")), str(fields.get("source"))))
    if found is not None:
        return found  # type: ignore[return-value]  # registered under its own kind
    missing = [one.name for one in dataclasses.fields(kind) if one.name not in fields]
    try:
        part = object.__new__(kind)
        if not fields["source"] or not set(fields) <= {one.name for one in dataclasses.fields(kind)}:
            raise KeyError("source")
        for name, value in (fields | {name: Absent(kind.word, str(fields["name"])) for name in missing}).items():
            object.__setattr__(part, name, value)
    except KeyError as error:
        raise UserError(f"not a {kind.word} of this version: {error}") from error
    return _PARTS.setdefault((kind, part.name, part.source), part)  # type: ignore[return-value]


@dataclass(frozen=True)
class Absent:
    """Code of a user's part where only its data was read."""

    word: str
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse."""
        raise UserError(
            f"{self.word} '{self.name}' is code of the study's own file, which only sweep, worker, sample and evaluate run: "
            "give the file in place of the folder"
        )


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


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | int | float)


def _is_users() -> bool:
    """Whether code outside the package makes the part: the first frame that is no function of the package's."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        module, code = str(frame.f_globals.get("__name__", "")), frame.f_code
        if module.split(".")[0] in ("dit", "beartype", "jaxtyping") or code.co_filename.startswith("<@beartype"):
            if code.co_name == "<module>":
                return False
            frame = frame.f_back
        else:
            return True
    return False


def without_defaults(fields: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """The fields that are not at their defaults, and those that have none."""
    return {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}


def digest(value: Any, length: int = 12) -> str:
    """Hash of a JSON value in canonical form (sorted keys, shortest floats)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]
