"""Latents on disk: what `dit encode` writes and training reads.

A folder holds `shard-00000.arrayrecord`, ... and a `manifest.json` that says how they were made and the sha256 of each. A record is
the autoencoder's posterior of one image: float16 of shape (2, 2, h, w, C) = (image, mirror image) x (mean, std), unscaled, then the
label (int32, little-endian), then the image's path in UTF-8. Mean and std, so that every epoch samples the posterior afresh; both
mirrors, because a latent cannot be mirrored. At 256 px that is 32,768 bytes of moments an image: 42 GB for ImageNet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16

from dit.design.checks import require_kind, require_number, require_positive
from dit.errors import UserError
from dit.store.environment import cache_folder
from dit.store.files import put, whole, write_text
from dit.store.paths import open_regular, private_folder, safe_component

FORMAT = 1
_LARGEST = 2**14
MANIFEST = "manifest.json"
# One record per chunk for random access; float16 noise does not compress (6 % with the default), so it is stored as it is.
_WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclass(frozen=True)
class Settings:
    """Everything that decides the bytes of the shards, except the pixels themselves."""

    vae_sha256: str
    image_size: int
    latent_size: int
    latent_channels: int
    latent_scale: float
    precision: str
    num_images: int
    images_sha256: str
    shard_size: int
    classes: tuple[str, ...]
    format: int = FORMAT
    latent_shift: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "image_size", "latent_size", "latent_channels", "num_images", "shard_size")
        require_number(self, "latent_scale", low=0, ends="(]")
        require_number(self, "latent_shift", low=-math.inf)
        require_kind(self, str, "vae_sha256", "precision", "images_sha256")
        if self.latent_size > self.image_size or self.image_size > _LARGEST or self.latent_channels > _LARGEST:
            raise UserError(
                f"latents of {self.latent_size} in {self.latent_channels} channels for images of {self.image_size} px: expected "
                f"no more than the images', and no more than {_LARGEST}"
            )

    @property
    def num_shards(self) -> int:
        """How many shards the images fill, the last one perhaps in part."""
        return -(-self.num_images // self.shard_size)

    @property
    def moments_shape(self) -> tuple[int, int, int, int, int]:
        """(mirror, mean or std, h, w, C) of one record."""
        return (2, 2, self.latent_size, self.latent_size, self.latent_channels)


@dataclass(frozen=True)
class Shard:
    """One finished shard, and the images it had to leave out with the reason for each."""

    name: str
    records: int
    num_bytes: int
    sha256: str
    broken: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Manifest:
    """How a folder of latents was made, and its shards in order."""

    settings: Settings
    shards: tuple[Shard, ...]

    @property
    def records(self) -> int:
        """How many records all shards hold."""
        return sum(shard.records for shard in self.shards)

    @property
    def broken(self) -> tuple[tuple[str, str], ...]:
        """The images left out, each with the reason."""
        return tuple(entry for shard in self.shards for entry in shard.broken)

    @property
    def num_classes(self) -> int:
        """How many classes the labels number."""
        return len(self.settings.classes)

    @property
    def identity(self) -> str:
        """A sha256 that changes whenever any record may have: what a run's identity should include for its data."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """One image's posterior, unscaled."""

    moments: Float16[np.ndarray, "2 2 h w C"]
    label: int
    image_id: str


def pack(record: Record) -> bytes:
    """The bytes of a record as they are stored."""
    moments = np.ascontiguousarray(record.moments, dtype="<f2")
    return moments.tobytes() + np.int32(record.label).astype("<i4").tobytes() + record.image_id.encode()


def unpack(data: bytes, shape: tuple[int, ...]) -> Record:
    """The record in `data`, whose moments have `shape`; a view, nothing is copied."""
    size = 2 * int(np.prod(shape))
    moments = np.frombuffer(data, "<f2", count=size // 2).reshape(shape)
    label = int(np.frombuffer(data, "<i4", count=1, offset=size)[0])
    return Record(moments, label, data[size + 4 :].decode())


def shard_name(index: int) -> str:
    """The file of the shard in that place."""
    return f"shard-{index:05d}.arrayrecord"


class ShardWriter:
    """Writes one shard so that a name of a shard always stands for a whole one: temporary file, fsync, then rename.

    The shard counts as finished once its `.json` note exists, which is written last in the same way.
    """

    def __init__(self, folder: Path, name: str):
        from array_record.python.array_record_module import ArrayRecordWriter

        self._folder, self._name, self._records = folder, name, 0
        self._temporary = folder / f"{name}.tmp"
        self._writer = ArrayRecordWriter(str(self._temporary), _WRITER_OPTIONS)

    def write(self, record: Record) -> None:
        """Append one record."""
        self._writer.write(pack(record))
        self._records += 1

    def finish(self, broken: Sequence[tuple[str, str]]) -> Shard:
        """Put the whole shard in its place and write its note; `broken` are the images it had to leave out."""
        self._writer.close()
        with self._temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._temporary.stat().st_size
        put(self._temporary, self._folder / self._name)
        shard = Shard(self._name, self._records, size, digest, tuple(broken))
        write_text(note_path(self._folder, self._name), to_json(shard))
        return shard

    def abandon(self) -> None:
        """Remove what was written; used on the way out of an error, so a second failure is not interesting."""
        with contextlib.suppress(RuntimeError):
            self._writer.close()
        self._temporary.unlink(missing_ok=True)


def note_path(folder: Path, name: str) -> Path:
    """Where a shard's note lies."""
    return folder / f"{Path(name).stem}.json"


def finished_shard(folder: Path, name: str) -> Shard | None:
    """The note of a shard that was finished earlier and still has its size, else None."""
    try:
        shard = _shard(json.loads(note_path(folder, name).read_text()))
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # a UserError is a ValueError
        return None
    whole = (folder / name).exists() and (folder / name).stat().st_size == shard.num_bytes
    return shard if whole else None


def to_json(value: Any) -> str:
    """A dataclass as JSON text, the same for equal values; a shift is there only where the autoencoder has one."""
    fields = dataclasses.asdict(
        value, dict_factory=lambda pairs: {k: v for k, v in pairs if (k, v) != ("latent_shift", 0.0)}
    )
    return json.dumps(fields, indent=1) + "\n"


def parse_settings(text: str, source: str) -> Settings:
    """The settings in `text`, which came from `source`."""
    return _settings(_parse(text, source), source)


def parse_manifest(text: str, source: str) -> Manifest:
    """The manifest in `text`, which came from `source`; checked for being whole, not against the shards."""
    raw = _parse(text, source)
    try:
        manifest = Manifest(_settings(raw["settings"], source), tuple(_shard(shard, source) for shard in raw["shards"]))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source} is not a manifest of latents ({error!r:.200}); encode the images again") from error
    if len(manifest.shards) != manifest.settings.num_shards or not manifest.records:
        raise UserError(f"{source} lists {len(manifest.shards)} shards; expected {manifest.settings.num_shards}")
    return manifest


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is damaged ({error}); copy or encode it again") from error
    if not isinstance(raw, dict):
        raise UserError(f"{source} is not a manifest of latents; expected what `dit encode` writes")
    return raw


def _settings(raw: Any, source: str) -> Settings:
    told = raw.get("format") if isinstance(raw, dict) else raw
    if told != FORMAT:
        raise UserError(f"{source} has format {told!r:.80}; this version reads {FORMAT}: encode the images again")
    try:
        return Settings(**{**raw, "classes": tuple(raw["classes"])})
    except (KeyError, TypeError, ValueError, UserError) as error:
        what = error if isinstance(error, UserError) else repr(error)
        raise UserError(f"{source} is not a manifest of latents ({what}); encode the images again") from error


def _shard(raw: Any, source: object = "a note") -> Shard:
    safe_component(raw["name"], source)
    shard = Shard(**{**raw, "broken": tuple((path, reason) for path, reason in raw["broken"])})
    counts = (shard.records, shard.num_bytes)
    if any(type(count) is not int or count < 0 for count in counts) or not isinstance(shard.sha256, str):
        raise TypeError(f"shard {shard.name} has records, bytes and sha256 {counts} and {shard.sha256!r:.80}")
    return shard


def open_latents(path: str | Path, *, verify: bool = True, cache: str | Path | None = None) -> tuple[Path, Manifest]:
    """(local folder, manifest) of the latents at `path`: a folder, or a URL such as `gs://bucket/latents`.

    Shards at a URL are copied once to `cache` (default: `latents` in `$DIT_CACHE`) and read from there.
    Every shard's sha256 is compared with the manifest, on all cores; `verify=False` compares sizes only. Raises UserError naming the shard.
    """
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        remote, root = fsspec.core.url_to_fs(str(path))
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot open {path}: {error} (for gs:// install gcsfs)") from error
    root = root.rstrip("/")
    try:
        if isinstance(remote, LocalFileSystem):
            open_regular(Path(root) / MANIFEST).close()
        text: Any = remote.cat_file(f"{root}/{MANIFEST}")
        manifest = parse_manifest(text.decode(errors="replace"), f"{path}/{MANIFEST}")
    except OSError as error:
        raise UserError(
            f"no latents at {path}: {MANIFEST} cannot be read ({error}); make them with `dit encode`, to its end"
        ) from error
    local = isinstance(remote, LocalFileSystem)
    base = Path(cache) if cache else cache_folder() / "latents"
    folder = Path(root) if local else private_folder(base / manifest.identity[:16])

    def check(shard: Shard) -> None:
        if not local:
            _stage(remote, f"{root}/{shard.name}", folder, shard)
        _check(folder / shard.name, shard, verify)

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        list(pool.map(check, manifest.shards))
    return folder, manifest


def _stage(remote: Any, source: str, folder: Path, shard: Shard) -> None:
    """Copy one remote shard unless it is here already."""
    target = folder / shard.name
    if target.is_file() and target.stat().st_size == shard.num_bytes:
        return
    try:
        with whole(target) as temporary:
            remote.get_file(source, str(temporary))
            # Whatever arrived is checked before it gets the shard's name, so a bad copy is fetched again next time.
            _check(temporary, shard, verify=True)
    except OSError as error:
        raise UserError(f"cannot copy {source} to {folder}: {error}") from error


def _check(path: Path, shard: Shard, verify: bool) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        raise UserError(f"shard {shard.name} is missing from {path.parent}; copy it again") from None
    if size != shard.num_bytes:
        raise UserError(
            f"shard {path} has {size:,} bytes; its manifest says {shard.num_bytes:,}: copy or encode it again"
        )
    if not verify:
        return
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.sha256:
        raise UserError(
            f"shard {path} is corrupted ({_place_of_damage(path, shard)}): sha256 {digest[:12]}..., its manifest says "
            f"{shard.sha256[:12]}...: copy or encode it again"
        )


def _place_of_damage(path: Path, shard: Shard) -> str:
    """Where a shard of the right size is not what was written: the first record that cannot be read, and its byte offset."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0", file_reader_buffer_size=2**15)
    if reader.num_records() != shard.records:
        return "the index at its end"
    for number in range(shard.records):
        try:
            reader.read([number])
        except (RuntimeError, ValueError) as error:  # its own checksums, of each record, tell the place
            offset = re.search(r"chunk at (\d+)", str(error))
            return f"record {number}" + (f" at byte {int(offset[1]):,}" if offset else "")
    return "outside its records"
