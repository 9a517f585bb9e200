"""A study's own file, kept in its folder with the files beside it that it imports, and what its parts are as data.

    DIR/study.py, DIR/study/...   the user's code; study.json holds the SHA-256 of each

Only what trains, samples or scores runs the code, after the hashes have been checked; whatever reads a folder takes the parts' names, looks
and counts from study.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dit.design.config import RunConfig
from dit.design.parts import Part, known
from dit.errors import UserError
from dit.store.paths import is_component

FILE, FOLDER = "study.py", "study"


def hashes(files: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of each file's text."""
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(files.items())}


def told(parts: Iterable[Part], runs: Sequence[RunConfig], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts as data, after those that the record told of `before` and that are no longer the study's: their runs are still there."""
    now = [part.as_data(runs) for part in parts]
    return [one for one in before if one["source"] not in {part["source"] for part in now}] + now


def read_parts(data: list[dict[str, Any]]) -> tuple[Part, ...]:
    """Make the parts that a study's record tells of known; those of kinds that this version does not have are left out."""
    by_name = {kind.__name__: kind for kind in Part.__subclasses__()}
    return tuple(known(by_name[one["kind"]], one) for one in data if one.get("kind") in by_name)


def checked(folder: Path, expected: Mapping[str, str]) -> dict[str, str]:
    """The text of the kept files, once each is the one that was swept.

    Raises:
        UserError: naming the file that is missing or another.
    """
    files: dict[str, str] = {}
    for name, sha256 in expected.items():
        if name != FILE and not (name.startswith(FOLDER + "/") and all(map(is_component, name.split("/")))):
            raise UserError(
                f"{folder}/study.json names the file {name!r:.80}: expected study.py or one in study/; do not trust it"
            )
        path = folder / name
        files[name] = path.read_text(encoding="utf8") if path.is_file() and not path.is_symlink() else ""
        if hashes({name: files[name]})[name] != sha256:
            raise UserError(
                f"{path} is missing or not the file that was swept (SHA-256 {sha256[:12]}): restore it, or sweep the changed study again"
            )
    return files
