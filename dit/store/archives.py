"""A study's rows as one file, `NAME.tar.xz`: what every reading verb takes in place of the folder.

Packing is deterministic (sorted names, no owners, no times), so the same rows give the same file. An archive is unpacked once, into
the cache folder under its SHA-256; only plain files with plain names are taken, within a budget of bytes and files.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
from pathlib import Path, PurePosixPath

from dit.errors import UserError
from dit.store.environment import cache_folder
from dit.store.files import whole
from dit.store.paths import is_beneath

SUFFIX = ".tar.xz"
LEFT_OUT = ("checkpoints", "ema", "drawn", "cache", "figures", "report.html", "arguments.seal")
"""Of a study's folder and its runs' folders: what is no row, is made again from the rows, or is this machine's own."""
MOST_BYTES = 2**30
MOST_FILES = 200_000


def pack(folder: Path, out: Path) -> Path:
    """Write a study's rows, logs and kept samples as one archive; weights, figures and locks stay behind.

    Raises:
        UserError: if the folder holds no study, or `out` does not end in `.tar.xz`.
    """
    if not (folder / "study.json").is_file():
        raise UserError(f"no study in {folder}: expected the folder that `dit sweep` wrote (it holds study.json)")
    if not out.name.endswith(SUFFIX):
        raise UserError(f"--out {out}: expected a name that ends in {SUFFIX}")
    with whole(out) as beside, tarfile.open(beside, "w:xz", preset=9) as archive:
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            plain = path.is_file() and not path.is_symlink()
            if plain and not any(part in LEFT_OUT or part.startswith(".") for part in parts):
                content = path.read_bytes()
                member = tarfile.TarInfo(str(PurePosixPath(*parts)))
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return out


def opened(source: Path) -> Path:
    """The folder itself, or what an archive of one is unpacked to."""
    return unpacked(source) if source.name.endswith(SUFFIX) and source.is_file() else source


def unpacked(archive: Path) -> Path:
    """The folder with an archive's content, unpacked once.

    Raises:
        UserError: if it is damaged, too large, or holds anything but plain files with plain names.
    """
    content = archive.read_bytes()
    place = cache_folder() / "studies" / hashlib.sha256(content).hexdigest()[:24] / archive.name.removesuffix(SUFFIX)
    if place.is_dir():
        return place
    try:
        with whole(place) as beside:
            beside.mkdir(mode=0o700)
            _extract(archive, content, beside)
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise UserError(f"{archive} is no sound archive of a study ({error}): get another copy") from error
    except OSError:
        if not place.is_dir():  # else another process was faster
            raise
    return place


def _extract(archive: Path, content: bytes, folder: Path) -> None:
    files = size = 0
    with lzma.open(io.BytesIO(content)) as stream:  # to its end first, where the checksum is
        while chunk := stream.read(2**20):
            if (size := size + len(chunk)) > MOST_BYTES + 2048 * MOST_FILES:
                raise UserError(f"{archive} unpacks to more than {MOST_BYTES >> 20} MiB: not a study's rows")
    size = 0
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:xz") as members:
        for member in members:
            files, size = files + 1, size + member.size
            if files > MOST_FILES or size > MOST_BYTES:
                raise UserError(
                    f"{archive} holds more than {MOST_FILES} files or {MOST_BYTES >> 20} MiB: not a study's rows"
                )
            if not member.isfile() or not is_beneath(member.name):
                raise UserError(f"{archive} holds {member.name[:80]!r}: expected plain files inside the study's folder")
            target = folder / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            data = members.extractfile(member)
            target.write_bytes(data.read() if data else b"")
