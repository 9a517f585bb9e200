"""Names and links that come with data never choose a path outside their folder, and what is read is a regular file.

A name from a record is used as part of a path only where `is_component` holds. Below a study's folder no link is written, deleted or
locked through: `refuse_links` looks at every component.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from dit.errors import UserError

MAX_NAME = 255
"""Bytes of a file's name on every file system in use."""


def is_component(name: Any) -> bool:
    """Whether it names one file in a folder: text without separators and control letters, no leading dot, of a bounded length."""
    return (
        isinstance(name, str)
        and 0 < len(os.fsencode(name) if name.isprintable() else "") <= MAX_NAME
        and not name.startswith(".")
        and not set(name) & set("/\\")
    )


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


def open_regular(path: Path) -> BinaryIO:
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
