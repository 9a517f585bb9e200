"""Which part of a file of weights to take: the averaged ones where there are several, under whatever name and behind whatever prefix.

A part is a mapping of names to tensors anywhere in the file, or those of its names that share a prefix (`module.`, `_orig_mod.`,
`ema_model.`, several stacked): it is known by one tensor that every network of the kind has, its anchor. A part's label is the way to
it and its prefix, such as `ema`, `state_dict.ema_model` or `model.module`; `--key` chooses by it. Nothing here reads a tensor's values.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dit.errors import UserError
from dit.weights.torch_records import Load, Record, Tensor, describe, tensor_of

_AVERAGE = re.compile(r"(?<![a-z])(ema|swa|avg|average|averaged|shadow|polyak|smoothed)s?(?![a-z])")
_USUAL = ("ema", "state_dict", "model")
_MOST_PLACES = 100_000
_DEEPEST = 4


@dataclass(frozen=True)
class Part:
    """Weights under their own names. `note` says in a line what was taken; `usual` if a file of this kind always gave this part."""

    label: str
    tensors: dict[str, Tensor]
    note: str = ""
    usual: bool = True
    prefix: str = ""


@dataclass(frozen=True)
class _Place:
    """One mapping in a file: its tensors and everything else in it. `named` is false for a list of tensors without names."""

    path: tuple[str, ...]
    tensors: dict[str, Tensor]
    others: dict[str, Any]
    named: bool = True


def choose(tree: Any, load: Load, anchors: Sequence[str], key: str | None, source: str) -> Part:
    """The part of a file to take: `key` where given, else the averaged weights, else the only ones.

    Args:
        anchors: names of a tensor that every network of the kind has, one for each way of naming; none takes any mapping of tensors.
        source: the file's name, for messages.

    Raises:
        UserError: if there is none, `key` is none of them, or several are as good as each other.
    """
    places = _places(tree, load)
    parts = [part for place in places if place.named for part in _parts_of(place, anchors)]
    parts = parts or [
        Part(".".join(p.path), p.tensors) for p in places if p.named and p.tensors and not _is_optimiser(p)
    ]
    parts += [part for place in places for part in _nameless(place, parts)]
    if not parts:
        raise UserError(_nothing(tree, source))
    labels = [part.label for part in parts]
    if key is not None:
        wanted = key.strip(".")
        within = [
            p for p in parts if wanted in (p.label, p.label.removesuffix(p.prefix).strip("."), p.prefix.strip("."))
        ]
        if not within:
            raise UserError(f"{source} has no weights under --key {key}: expected one of {_names(labels)}")
    else:
        within = parts
        _refuse_unread_average(places, parts, source)
    best = max(map(_rank, within))
    first = [part for part in within if _rank(part) == best]
    if len(first) > 1 and not best:
        usual = [part for name in _USUAL for part in first if part.label.split(".")[0] == name]
        first = usual[:1] or ([part for part in first if not part.label][:1] or first)
    if len(first) > 1:
        raise UserError(
            f"{source} holds {len(first)} sets of weights, {_names([p.label for p in first])}: choose one with --key"
        )
    (taken,) = first
    place = next((p for p in places if ".".join(p.path) == taken.label.removesuffix(taken.prefix).strip(".")), None)
    if place is not None:
        _refuse_unread_tensor(place, taken.prefix, source)
    usual_label = next((name for name in _USUAL if name in labels), "")
    return Part(
        taken.label, taken.tensors, _note(taken, labels, places, source), taken.label in ("", usual_label), taken.prefix
    )


def _places(tree: Any, load: Load) -> list[_Place]:
    """Every mapping of the file that is not too deep in it, each visited once."""
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), tree)])
    found, seen = [], set()
    while waiting and len(seen) < _MOST_PLACES:
        path, value = waiting.popleft()
        entries = value if isinstance(value, dict) else value.mapping() if isinstance(value, Record) else None
        if isinstance(value, list | tuple) and value and path and _is_average(".".join(path)):
            listed = [_as_tensor(entry, load) for entry in value]
            if all(listed):
                found.append(_Place(path, {str(i): t for i, t in enumerate(listed) if t}, {}, named=False))
        if entries is None or id(value) in seen:
            continue
        seen.add(id(value))
        tensors = {str(name): tensor for name, entry in entries.items() if (tensor := _as_tensor(entry, load))}
        others = {str(name): entry for name, entry in entries.items() if str(name) not in tensors}
        found.append(_Place(path, tensors, others))
        if len(path) < _DEEPEST:
            waiting += [((*path, name), entry) for name, entry in others.items()]
    return found


def _as_tensor(value: Any, load: Load) -> Tensor | None:
    return value if isinstance(value, Tensor) else tensor_of(value, load)


def _parts_of(place: _Place, anchors: Sequence[str]) -> list[Part]:
    """The parts of one mapping: one for every prefix that stands before an anchor, and LitEma's copy of it, whose names lost their dots."""
    found = []
    prefixes = {name.removesuffix(a) for a in anchors for name in place.tensors if name == a or name.endswith(f".{a}")}
    for prefix in sorted(prefixes):
        label = ".".join([*place.path, *([prefix[:-1]] if prefix else [])])
        own = {name[len(prefix) :]: tensor for name, tensor in place.tensors.items() if name.startswith(prefix)}
        found.append(Part(label, own, prefix=prefix[:-1]))
        inner = prefix.partition(".")[2]
        flat = {name: f"model_ema.{(inner + name).replace('.', '')}" for name in own}
        if prefix and any(flat[name] in place.tensors for name in own):
            copy = {name: place.tensors[other] for name, other in flat.items() if other in place.tensors}
            found.append(Part(".".join([*place.path, "model_ema"]), copy, prefix="model_ema"))
    return found


def _nameless(place: _Place, parts: list[Part]) -> list[Part]:
    """A list of averages under the names of the raw weights that it averages, which it follows in order and shapes."""
    if place.named:
        return []
    averages = list(place.tensors.values())
    for part in parts:
        for names in (list(part.tensors), [name for name in part.tensors if name != "pos_embed"]):
            if [part.tensors[name].shape for name in names] == [average.shape for average in averages]:
                return [Part(".".join(place.path), dict(zip(names, averages)))]
    return []


def _is_average(label: str) -> bool:
    return bool(_AVERAGE.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", label).lower()))


def _rank(part: Part) -> int:
    """How many steps of the way to a part say that it is averaged."""
    return sum(map(_is_average, part.label.split(".")))


def _is_optimiser(place: _Place) -> bool:
    return bool(place.path) and place.path[0].lower().startswith(("opt", "sched", "lr_"))


def _refuse_unread_average(places: list[_Place], parts: list[Part], source: str) -> None:
    """Averaged weights that are there but cannot be told apart must not give way to raw ones without a word."""
    if any(map(_rank, parts)):
        return
    for place in places:
        if place.path and _is_average(".".join(place.path)) and place.tensors and not _is_optimiser(place):
            raise UserError(
                f"{source}: '{'.'.join(place.path)}' holds averaged weights that cannot be read as these: "
                f"choose one of {_names([part.label for part in parts])} with --key"
            )


def _refuse_unread_tensor(place: _Place, prefix: str, source: str) -> None:
    for name, value in place.others.items():
        tensor_like = isinstance(value, Record) and (
            "rebuild" in value.name or name.rpartition(".")[2] in ("weight", "bias")
        )
        if tensor_like and name.startswith(prefix):
            raise UserError(
                f"{source}: entry '{name}' {describe(value)}. Save only plain tensors "
                "(torch.save(model.state_dict(), path)), or use .safetensors"
            )


def _nothing(tree: Any, source: str) -> str:
    if not isinstance(tree, dict):
        return (
            f"{source} holds no weights: it {describe(tree)}; expected a dictionary of tensors, save model.state_dict()"
        )
    first = next((f": entry '{name}' {describe(value)}" for name, value in tree.items()), "")
    return f"{source} holds no tensors{first[:200]}; expected only tensors in a state dict"


def _note(part: Part, labels: list[str], places: list[_Place], source: str) -> str:
    """What was taken, in a line."""
    average = ", the averaged weights" if _rank(part) else ""
    what = f"'{part.label}' of {source}{average}" if part.label else source
    said = [f"took {what}: {len(part.tensors)} tensors"]
    if part.prefix:
        said.append(f"'{part.prefix}.' taken off their names")
    others = [label for label in labels if label != part.label]
    if others:
        said.append(f"also there: {_names(others)} (--key)")
    empty = [
        name
        for place in places
        if len(place.path) < 2
        for name, value in place.others.items()
        if _is_average(name) and (value is None or (isinstance(value, dict | list) and not value))
    ]
    said += [f"its '{name}' is empty" for name in empty]
    return "; ".join(said)


def _names(labels: list[str]) -> str:
    shown = ", ".join(f"'{label}'" if label else "the file's own names" for label in labels[:8])
    return shown if len(labels) <= 8 else f"{shown} and {len(labels) - 8} more"
