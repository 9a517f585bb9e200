"""The few file operations that a lease stands on, for shared disks and for object stores.

Exactly one of them must be exclusive: `create` either makes a name that was not there, whole, or says that it was. On disks (NFS among
them) that is a hard link, or O_EXCL where links are not to be had; on an object store a write that is conditional on generation 0,
which fsspec calls mode "create". No modification time and no other host's clock is ever read.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dit.store.files import make_folder, read_bytes, sync, write_bytes
from dit.store.paths import refuse_links


@runtime_checkable
class LeaseFiles(Protocol):
    """A flat folder of small files."""

    def names(self) -> list[str]:
        """Names of the files; none if the folder does not exist."""
        ...

    def read(self, name: str) -> bytes | None:
        """A file's content, or None if there is none."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Make the file, whole; False, and nothing changed, if the name is taken. No two callers pass the same data."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write the file anew, whole. Only the process that created a file replaces it."""
        ...

    def remove(self, name: str) -> None:
        """Delete the file if it is there."""
        ...


class DiskFiles:
    """A folder on a local or shared disk."""

    def __init__(self, folder: Path):
        self.folder = folder

    def names(self) -> list[str]:
        """Names of the files, those on their way left out."""
        try:
            return [name for name in os.listdir(self.folder) if not name.startswith(".")]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        """A file's content, or None if there is none."""
        try:
            return read_bytes(self.folder / name)
        except FileNotFoundError:
            return None

    def create(self, name: str, data: bytes) -> bool:
        """Make the file by linking a finished one to its name, or by O_EXCL where the disk has no links."""
        refuse_links(self.folder / name)
        make_folder(self.folder)
        beside = self.folder / f".{name}.{uuid.uuid4().hex}"
        try:
            beside.write_bytes(data)
            sync(beside)
            os.link(beside, self.folder / name)
            sync(self.folder)
        except FileExistsError:
            return os.stat(beside).st_nlink == 2  # a repeated request over NFS: the link was ours
        except (PermissionError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                return False
            return self._create_exclusively(name, data)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
        return True

    def _create_exclusively(self, name: str, data: bytes) -> bool:
        try:
            descriptor = os.open(self.folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        sync(self.folder)
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write the file beside its place and rename it; over NFS this also renews the client's view of the folder."""
        write_bytes(self.folder / name, data)

    def remove(self, name: str) -> None:
        """Delete the file if it is there."""
        refuse_links(self.folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.folder / name)
            sync(self.folder)


class ObjectFiles:
    """A prefix in an object store, through an fsspec file system (gcsfs for gs://).

    The store must list what was just written and honour mode "create" (gcsfs sends `ifGenerationMatch=0`).
    """

    def __init__(self, filesystem: Any, prefix: str):
        self.filesystem, self.prefix = filesystem, prefix.rstrip("/")

    def names(self) -> list[str]:
        """Names of the objects, read from the store and not from fsspec's cache."""
        self.filesystem.invalidate_cache(self.prefix)
        try:
            return [path.rsplit("/", 1)[-1] for path in self.filesystem.ls(self.prefix, detail=False)]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        """An object's content, or None if there is none."""
        try:
            return self.filesystem.cat_file(f"{self.prefix}/{name}")
        except FileNotFoundError:
            return None

    def create(self, name: str, data: bytes) -> bool:
        """Write the object on condition that it has no generation yet."""
        try:
            self.filesystem.pipe_file(f"{self.prefix}/{name}", data, mode="create")
        except FileExistsError:
            return self.read(name) == data  # a repeated request: the first was ours, its reply was lost
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Write the object's next generation."""
        self.filesystem.pipe_file(f"{self.prefix}/{name}", data)

    def remove(self, name: str) -> None:
        """Delete the object if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(f"{self.prefix}/{name}")
