"""Names and links that come with data never choose a path outside their folder, and what is read is a regular file.

A name from a record is part of a path only where `is_component` holds. Nothing in a study's folder is written, locked or deleted through
a link: `refuse_links` looks at every component below the study's folder, `refuse_links_in` at all that a run's folder holds before the
run is claimed, and `open_beneath` opens a file from directory to directory without following any.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any

from dit.errors import UserError

MAX_NAME = 255
"""Bytes of a file's name on every file system in use."""
WANDB = "wandb"
"""Folder in a run's folder where Weights & Biases keeps links of its own making."""


def is_component(name: Any) -> bool:
    """Whether it names one file in a folder: text without separators and control letters, no leading dot, of a bounded length."""
    return (
        isinstance(name, str)
        and 0 < len(os.fsencode(name) if name.isprintable() else "") <= MAX_NAME
        and not name.startswith(".")
        and not set(name) & set("/\\")
    )


def is_beneath(name: Any) -> bool:
    """Whether it is a relative path that stays in its folder: printable text that does not start at the root and never goes up."""
    parts = PurePosixPath(name).parts if isinstance(name, str) and name.isprintable() else ()
    return bool(parts) and not name.startswith("/") and ".." not in parts


def safe_component(name: Any, source: object) -> str:
    """The name, which came from `source`.

    Raises:
        UserError: if it is no plain name of one file.
    """
    if not is_component(name):
        raise UserError(f"{source} names the file {name!r:.80}: expected a plain name without folders; do not trust it")
    return name


def private_folder(path: Path) -> Path:
    """The folder, made if need be, that only this user can write to.

    Raises:
        UserError: if it is a link, or belongs to or can be written by someone else.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise UserError(f"{path} is not a folder of your own that only you can write to: remove it, or set DIT_CACHE")
    return path


def refuse_links(path: Path) -> None:
    """Check that no link, pipe or device lies below the study's folder on the way to `path`, or in its place.

    The study's folder is the outermost one above `path` with a `study.json`, and may be a link itself; elsewhere links are the user's own.

    Raises:
        UserError: naming it, and where a link leads.
    """
    path = path.absolute()
    above = list(path.parents)[::-1]
    root = next((folder for folder in above if os.path.lexists(folder / "study.json")), path)
    for part in [*above, path]:
        if part != root and part.is_relative_to(root):
            _refuse_special(part, root)


def refuse_links_in(folder: Path, levels: int = 2) -> None:
    """Check that a run's folder, where it is there, holds files and folders alone, so many levels deep, and is no link itself.

    Raises:
        UserError: naming the first link, pipe or device.
    """
    refuse_links(folder)
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if levels > 1 and entry.name != WANDB:
                refuse_links_in(Path(entry.path), levels - 1)
        elif not entry.is_file(follow_symlinks=False):
            _refuse_special(Path(entry.path), folder)


def _refuse_special(path: Path, root: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(mode):
        raise _link(path, root)
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path} is a pipe or a device: expected files and folders alone, remove it")


def _link(path: Path, root: Path) -> UserError:
    target = path.resolve()
    outside = "" if target.is_relative_to(root.resolve()) else ", outside the study's folder"
    return UserError(f"{path} is a link to {target}{outside}: put the file or folder itself there")


def open_beneath(root: Path, relative: str, flags: int) -> int:
    """A descriptor of the file at `relative` below `root`, opened with `flags` (as `os.open`); no link on the way is followed.

    Raises:
        UserError: if a component is a link.
        OSError: if it cannot be opened.
    """
    *folders, name = relative.split("/")
    walked, here = root, os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:
            walked /= part
            inside = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = inside
        walked /= name
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=here)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and walked.is_symlink():
            raise _link(walked, root) from error
        raise type(error)(error.errno, error.strerror, str(walked)) from error
    finally:
        os.close(here)


def open_regular(path: Path) -> io.BufferedReader:
    """A regular file, open for reading; links are followed.

    Raises:
        UserError: if there is a pipe, a device or a folder in its place.
        OSError: if it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{path} is no regular file: expected one, not a folder, pipe or device")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
