"""Checkpoints that never load wrong bytes: Orbax for the arrays, a SHA-256 manifest and an atomic rename around them.

Orbax alone restores a flipped bit silently and has no fallback. Here a checkpoint is written beside its place, every file is hashed
and synced, the manifest is written last, and only then is the folder renamed to its step. Restoring verifies the manifest;
a checkpoint that fails is renamed to `<step>.corrupt-<n>` and the newest sound one before it is used.

    FOLDER/<step>/arrays/...       Orbax's files, one array per path of the tree
    FOLDER/<step>/manifest.json    identity of the run, step, sha256 of each file, and a digest of the manifest itself
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from dit.config import digest
from dit.errors import UserError
from dit.store import SCHEMA_VERSION, Fence, no_fence

Tree = TypeVar("Tree")


class Corrupt(Exception):
    """A checkpoint whose files are not what its manifest says."""


class Checkpoints:
    """The checkpoints of one run in one folder; `identity` is the run's hash, `fence` is asked before one is put in its place.

    Opening it clears what a killed writer left unfinished, so only the one writer of the run may open it for writing.
    """

    def __init__(self, folder: Path, identity: str, fence: Fence = no_fence):
        self.folder, self.identity, self.fence = folder, identity, fence
        for left in folder.glob(".*.writing-*"):
            shutil.rmtree(left)

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdigit())

    def save(self, step: int, tree: Any) -> None:
        """Write the tree's arrays as the checkpoint of `step`, whole or not at all. An existing one is kept."""
        final = self.folder / f"{step:08d}"
        if final.exists():
            return
        beside = self.folder / f".{final.name}.writing-{os.getpid()}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((beside / "arrays").absolute(), flatten(tree))
        files = {str(path.relative_to(beside)): _sha256(path, sync=True) for path in _files(beside)}
        manifest = {"schema_version": SCHEMA_VERSION, "identity": self.identity, "step": step, "files": files}
        manifest["digest"] = digest(manifest)
        path = beside / "manifest.json"
        with open(path, "w", encoding="utf8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        self.fence()
        os.rename(beside, final)
        _sync_folder(self.folder)

    def restore(self, step: int, like: Tree) -> Tree:
        """The tree saved at `step`, in the structure of `like` (whose leaves are arrays or their shapes and dtypes).

        Raises:
            Corrupt: if a file differs from its recorded hash, is missing, or is not in the manifest.
            UserError: if the checkpoint is another run's, or of a newer schema.
        """
        path = self.folder / f"{step:08d}"
        self._verify(path)
        abstract = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flatten(like).items()}
        with ocp.StandardCheckpointer() as checkpointer:
            arrays = checkpointer.restore((path / "arrays").absolute(), abstract)
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in abstract])

    def restore_latest(self, like: Tree, warn: Callable[[str], None]) -> tuple[int, Tree] | None:
        """The newest sound checkpoint and its step, or None; corrupt ones are set aside and `warn` is told of each."""
        for step in reversed(self.steps()):
            try:
                return step, self.restore(step, like)
            except Corrupt as error:
                self._quarantine(step)
                warn(
                    f"the checkpoint of step {step} is corrupt and was set aside ({error}); falling back to the one before"
                )
        return None

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` checkpoints."""
        for step in self.steps()[:-keep]:
            shutil.rmtree(self.folder / f"{step:08d}")

    def _quarantine(self, step: int) -> None:
        path = self.folder / f"{step:08d}"
        taken = [int(other.name.rpartition("-")[2]) for other in self.folder.glob(f"{path.name}.corrupt-*")]
        number = max(taken, default=-1) + 1
        os.rename(path, path.with_name(f"{path.name}.corrupt-{number}"))

    def _verify(self, path: Path) -> None:
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf8"))
            recorded = manifest.pop("digest")
            version, identity, files = manifest["schema_version"], manifest["identity"], manifest["files"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corrupt(f"unreadable manifest ({type(error).__name__}: {error})") from error
        if digest(manifest) != recorded:
            raise Corrupt("manifest.json has changed since it was written")
        if version > SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema version {version}, this version reads up to {SCHEMA_VERSION}: upgrade dit-scaling"
            )
        if identity != self.identity:
            raise UserError(f"{path} belongs to run {identity}, expected {self.identity}: move it away")
        present = {str(file.relative_to(path)): file for file in _files(path) if file.name != "manifest.json"}
        if present.keys() != files.keys():
            raise Corrupt(f"files differ from the manifest: {sorted(present.keys() ^ files.keys())}")
        for name, file in present.items():
            if _sha256(file) != files[name]:
                raise Corrupt(f"{name} has changed since it was written")


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by slash-separated path, such as `params/blocks/attention/qkv/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path, sync: bool = False) -> str:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
