"""Checkpoints that never load wrong bytes: Orbax for the arrays, a SHA-256 manifest and an atomic rename around them.

Orbax alone restores a flipped bit silently and has no fallback. Here a checkpoint is written beside its place, every file is hashed
and synced, the manifest is written last, and only then is the folder renamed to its step. Restoring verifies the manifest;
a checkpoint that fails is renamed to `<step>.corrupt-<n>` and the newest sound one before it is used.

    FOLDER/<step>/arrays/...       Orbax's files, one array per path of the tree
    FOLDER/<step>/manifest.json    identity of the run, step, sha256 of each file, and a digest of the manifest itself

Saving holds up training only until the arrays are copied from the devices; a thread does the rest. Of several processes each writes its
own shards, and process 0 alone hashes, renames and deletes.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from dit.errors import UserError
from dit.hosts.processes import Absent, Processes, absentees
from dit.store import manifest
from dit.store.files import put, remedy
from dit.store.manifest import Corrupt
from dit.store.paths import refuse_links
from dit.store.study import Fence, no_fence

Tree = TypeVar("Tree")


class Checkpoints:
    """The checkpoints of one run in one folder, for reading; `identity` is the run's hash. Another process may be writing them."""

    def __init__(self, folder: Path, identity: str):
        self.folder, self.identity = folder, identity

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdigit())

    def restore(self, step: int, like: Tree) -> Tree:
        """The tree saved at `step`, in the structure of `like` (whose leaves are arrays or their shapes and dtypes).

        Leaves come back under the shardings that those of `like` have, whatever devices saved them, or else on the default device,
        bound to it no more than fresh ones are: a program that was compiled for those serves them.

        Raises:
            Corrupt: if a file differs from its recorded hash, is missing, or is not in the manifest.
            UserError: if the checkpoint is another run's, of a newer schema, or holds other arrays than `like`.
        """
        manifest.verify(self.path(step), self.identity)
        return self._read(step, like)

    def path(self, step: int) -> Path:
        """The folder of that step's checkpoint."""
        return self.folder / f"{step:08d}"

    def _read(self, step: int, like: Tree, **options: Any) -> Tree:
        leaves, place = flatten(like), (self.path(step) / "arrays").absolute()
        device = SingleDeviceSharding(jax.local_devices()[0])
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or device)
            for name, leaf in leaves.items()
        }
        with ocp.StandardCheckpointer(**options) as checkpointer:
            held = checkpointer.metadata(place).item_metadata
            for name in [*leaves, *held]:
                expected, found = _form(leaves.get(name)), _form(held.get(name))
                if expected != found:
                    raise UserError(
                        f"{self.path(step)} was written by another version: '{name}' is {found} there, expected {expected}; "
                        "use that version, or move the folder away to train again"
                    )
            arrays = checkpointer.restore(place, abstract)
        placed = [
            arrays[name] if getattr(leaf, "sharding", None) else jax.device_put(np.asarray(arrays[name]))
            for name, leaf in leaves.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(like), placed)


class CheckpointWriter(Checkpoints):
    """The checkpoints of a run for the one worker that writes them; in several processes, all of them make it and save together.

    Opening it makes the folder and clears what a killed writer left unfinished.

    Args:
        keep: how many of the newest to keep; None for all.
        fence: raises if this process may not write to the run any more. Asked before anything is renamed or deleted.

    Raises:
        UserError: if the folder cannot be written, or holds another run's checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        keep: int | None = None,
        fence: Fence = no_fence,
        processes: Processes | None = None,
    ):
        super().__init__(folder, identity)
        self.keep, self._fence, self._processes = keep, fence, processes or Processes()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        if self._processes.leads:
            self._open()
        self._token = self._processes.tell("checkpoint token", secrets.token_hex(4))

    def save(self, step: int, tree: Any) -> None:
        """Copy the tree's arrays and return; a thread makes them the checkpoint of `step`, whole or not at all, and prunes.

        A sound checkpoint of that step is kept as it is. A save that is under way is waited for.

        Raises:
            UserError: if an earlier save failed and nobody has been told yet, or the folder cannot be written.
        """
        self.wait()
        if self._processes.tell("checkpoint is there", self._processes.leads and self._is_there(step)):
            return
        beside = self.folder / f".{step:08d}.writing-{self._token}"
        self._processes.meet(f"the save of step {step}")
        try:
            if self._processes.leads:
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir()
            checkpointer = ocp.StandardCheckpointer(**self._processes.options("save"))
            checkpointer.save((beside / "arrays").absolute(), flatten(tree))
        except Exception as error:
            self._fail(step, beside, error)
        self._saving = self._thread.submit(self._publish, checkpointer, beside, step)

    @property
    def is_saving(self) -> bool:
        """Whether files are being written."""
        return self._saving is not None and not self._saving.done()

    def check(self) -> None:
        """Raise what stopped a save in the background, once; return at once otherwise."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Return when no save is under way; raises as `check`."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the save under way, and raise what stopped it unless something else is on its way already."""
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def restore(self, step: int, like: Tree) -> Tree:
        """As `Checkpoints.restore`; process 0 verifies for all."""
        problem = None
        if self._processes.leads:
            try:
                manifest.verify(self.path(step), self.identity)
            except Corrupt as error:
                problem = str(error)
        problem = self._processes.tell("checkpoint problem", problem)
        if problem is not None:
            raise Corrupt(problem)
        self._processes.meet(f"the checkpoint of step {step}")
        return self._read(step, like, **self._processes.options("restore"))

    def restore_latest(self, like: Tree, warn: Callable[[str], None]) -> tuple[int, Tree] | None:
        """The newest sound checkpoint and its step, or None; corrupt ones are set aside and `warn` is told of each."""
        for step in reversed(self._processes.tell("checkpoint steps", self.steps())):
            try:
                return step, self.restore(step, like)
            except Corrupt as error:
                self.set_aside(step)
                warn(
                    f"the checkpoint of step {step} is corrupt and was set aside ({error}); falling back to the one before"
                )
        return None

    def set_aside(self, step: int) -> None:
        """Rename a corrupt checkpoint, so that it counts no more."""
        if not self._processes.leads:
            return
        path = self.path(step)
        taken = [int(other.name.rpartition("-")[2]) for other in self.folder.glob(f"{path.name}.corrupt-*")]
        self._fence()
        os.rename(path, path.with_name(f"{path.name}.corrupt-{max(taken, default=-1) + 1}"))

    def _open(self) -> None:
        refuse_links(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.writing-*"):
                self._fence()
                shutil.rmtree(left)
            probe = self.folder / f".probe.writing-{secrets.token_hex(4)}"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise UserError(
                f"cannot write checkpoints in {self.folder} ({error.strerror}): make it a folder that can be written"
            ) from error
        for step in self.steps():
            try:
                manifest.check_identity(self.path(step), manifest.read(self.path(step)), self.identity)
            except Corrupt:  # restoring it will tell
                continue

    def _is_there(self, step: int) -> bool:
        if not self.path(step).exists():
            return False
        try:
            manifest.verify(self.path(step), self.identity)
        except Corrupt:
            self.set_aside(step)
            return False
        return True

    def _publish(self, checkpointer: ocp.StandardCheckpointer, beside: Path, step: int) -> None:
        """The background's part of a save."""
        try:
            with checkpointer:
                checkpointer.wait_until_finished()
            if self._processes.leads:
                manifest.seal(beside, self.identity, step)
                put(beside, self.path(step), self._fence)
                self._prune()
        except Exception as error:
            self._fail(step, beside, error)

    def _prune(self) -> None:
        for step in self.steps()[: -self.keep] if self.keep else []:
            self._fence()
            doomed = self.folder / f".{step:08d}.writing-pruned-{self._token}"
            os.rename(self.path(step), doomed)  # it goes at once: half of one must not look like a checkpoint
            shutil.rmtree(doomed)

    def _fail(self, step: int, beside: Path, error: Exception) -> NoReturn:
        """Raise the error as the user should read it. What was written of the failed save gives its room back."""
        if self._processes.leads:
            shutil.rmtree(beside, ignore_errors=True)
        if missing := absentees(error):
            raise Absent(
                f"process {missing} of {self._processes.count} did not come to the save of step {step} within the deadline"
            ) from error
        full = "RESOURCE_EXHAUSTED" in str(error) or "No space left" in str(error)
        if full or isinstance(error, OSError):
            reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
            last = next(iter(self.steps()[-1:]), None)
            kept = "there is no earlier one" if last is None else f"the one of step {last} is whole"
            helps = remedy(error) if isinstance(error, OSError) and not full else "make room"
            raise UserError(
                f"cannot write the checkpoint of step {step} in {self.folder}: {reason}; {kept}: {helps} and run again"
            ) from error
        raise error


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by slash-separated path, such as `params/blocks/attention/qkv/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _form(leaf: Any) -> str:
    return "absent" if leaf is None else f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
