"""What the files of a checkpoint must be: their SHA-256, the run and step they belong to, and a digest of the manifest itself.

Sealing a folder hashes every file in it and writes `manifest.json` last; verifying one tells whether anything has changed since.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from dit.design.config import digest
from dit.errors import UserError
from dit.store.files import SCHEMA_VERSION, read_bytes, write_text

NAME = "manifest.json"


class Corrupt(Exception):
    """A checkpoint whose files are not what its manifest says."""


class Manifest(NamedTuple):
    """What a sealed folder says of itself; `files` are SHA-256 by path within it."""

    identity: str
    step: int
    files: dict[str, str]


def seal(folder: Path, identity: str, step: int) -> None:
    """Hash everything in the folder and write its manifest; `dit.store.files.put` syncs it."""
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "identity": identity,
        "step": step,
        "files": _hashes(folder),
    }
    manifest["digest"] = digest(manifest)
    write_text(folder / NAME, json.dumps(manifest, indent=1))


def read(folder: Path) -> Manifest:
    """The folder's manifest.

    Raises:
        Corrupt: if there is none, it is unreadable or has changed, or the folder was renamed to another step.
        UserError: if it is of a newer schema.
    """
    try:
        manifest = json.loads(read_bytes(folder / NAME))
        recorded, now = manifest.pop("digest"), digest(manifest)
        version, found = manifest["schema_version"], Manifest(manifest["identity"], manifest["step"], manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(f"unreadable manifest ({type(error).__name__}: {error})") from error
    if now != recorded:
        raise Corrupt(f"{NAME} has changed since it was written")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{folder} has schema version {version}, this version reads up to {SCHEMA_VERSION}: upgrade dit-scaling"
        )
    if found.step != int(folder.name):
        raise Corrupt(f"it is of step {found.step}, but its folder says {folder.name}")
    return found


def check_identity(folder: Path, manifest: Manifest, identity: str) -> None:
    """Refuse another run's checkpoint.

    Raises:
        UserError: naming both runs.
    """
    if manifest.identity != identity:
        raise UserError(f"{folder} belongs to run {manifest.identity}, expected {identity}: move it away")


def verify(folder: Path, identity: str) -> None:
    """Read every file in the folder and compare it with the manifest.

    Raises:
        Corrupt: if a file differs from its recorded hash, is missing, or is not in the manifest.
        UserError: if the checkpoint is another run's, or of a newer schema.
    """
    manifest = read(folder)
    check_identity(folder, manifest, identity)
    present = {str(path.relative_to(folder)) for path in _files(folder)}
    if present != manifest.files.keys():
        raise Corrupt(f"files differ from the manifest: {sorted(present ^ manifest.files.keys())}")
    for name, found in _hashes(folder).items():
        if found != manifest.files[name]:
            raise Corrupt(f"{name} has changed since it was written")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest, several at a time: hashing lets go of Python's lock."""

    def sha256(path: Path) -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    files = _files(folder)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return {str(path.relative_to(folder)): found for path, found in zip(files, threads.map(sha256, files))}
