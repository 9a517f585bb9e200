"""From a tree of images to a folder of latents: decode, crop, encode image and mirror, store (the format is `dit.data.shards`).

Shard i always holds images [i * shard_size, (i+1) * shard_size) of the sorted list, minus the broken ones, so a run that was killed, or
was split over other processes, ends in the same files. Image decoding uses all cores and stays a few batches ahead of the encoder,
never more: memory does not grow with the number of images.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float16, UInt8

from dit.data import shards as latent_shards
from dit.data.image_tree import ImageTree, find_images
from dit.data.images import BrokenImage, load_square, to_model
from dit.data.shards import Manifest, Record, Settings, Shard, ShardWriter
from dit.errors import UserError
from dit.store.files import write_text
from dit.weights.vae import AutoencoderKL
from dit.weights.vae_weights import load_vae

PLAN = "plan.json"
# Batches being decoded while another is encoded: enough to hide a slow photograph, few enough to forget about memory.
_DECODE_AHEAD = 3
PRECISIONS = {"float32": jax.lax.Precision.HIGHEST, "fast": None}


@dataclass(frozen=True)
class EncodeRun:
    """What to encode and how; only `process_*`, `batch_size` and `max_broken` leave the result unchanged."""

    images: Path
    vae: Path
    image_size: int
    out: Path
    labels: Path | None = None
    process_index: int = 0
    process_count: int = 1
    batch_size: int | None = None
    shard_size: int = 4096
    max_broken: float = 0.01
    precision: str = "float32"


@dataclass
class Progress:
    """Counts of this process's share, shown while it runs; `done` includes what earlier runs finished, `said` is what was found."""

    total: int = 0
    done: int = 0
    resumed: int = 0
    broken: int = 0
    said: str = ""
    wall_s: float = 0.0

    @property
    def images_per_s(self) -> float:
        """Speed of this call: images that an earlier one had finished do not count."""
        return (self.done - self.resumed) / self.wall_s if self.wall_s else 0.0


def encode(run: EncodeRun, report: Callable[[Progress], None] = lambda _: None) -> tuple[Progress, Manifest | None]:
    """Write this process's shards, and the manifest if with them all are there; None while other processes have work left.

    Raises UserError for bad input, more broken images than `max_broken` of this process's share, and a full disk. Finished shards stay.
    """
    _check_arguments(run)
    tree = find_images(run.images, run.labels)
    model, vae_sha256 = load_vae(run.vae, PRECISIONS[run.precision])
    settings = _settings(run, tree, model, vae_sha256)
    with _disk_errors(run.out), _alone(run):
        _begin(run.out, settings)
        mine = range(run.process_index, settings.num_shards, run.process_count)
        finished = {i: latent_shards.finished_shard(run.out, latent_shards.shard_name(i)) for i in mine}
        left = [i for i in mine if finished[i] is None]
        _check_space(run.out, settings, len(left))
        progress = _resumed(settings, finished)
        progress.said = tree.said
        report(progress)
        _check_broken(run, progress, [shard for shard in finished.values() if shard])
        if left:
            _encode_shards(run, tree, settings, model, left, progress, report)
        return progress, _complete(run.out, settings)


def _check_arguments(run: EncodeRun) -> None:
    if not 0 <= run.process_index < run.process_count:
        raise UserError(f"--process-index {run.process_index} is not in 0..{run.process_count - 1} (--process-count)")
    if run.shard_size < 1 or run.image_size < 1 or (run.batch_size is not None and run.batch_size < 1):
        raise UserError("--image-size, --shard-size and --batch-size must be positive")
    if not 0 <= run.max_broken <= 1:
        raise UserError(f"--max-broken {run.max_broken} is not a share; expected 0 to 1")


def _settings(run: EncodeRun, tree: ImageTree, model: AutoencoderKL, vae_sha256: str) -> Settings:
    config = model.config
    if run.image_size % config.downsampling:
        raise UserError(f"--image-size {run.image_size} is not a multiple of the autoencoder's {config.downsampling}")
    if config.in_channels != 3:
        raise UserError(f"the autoencoder {run.vae} takes {config.in_channels} channels; expected 3, for RGB images")
    return Settings(
        vae_sha256=vae_sha256,
        image_size=run.image_size,
        latent_size=run.image_size // config.downsampling,
        latent_channels=config.latent_channels,
        latent_scale=config.scaling_factor,
        latent_shift=config.shift_factor,
        precision=run.precision,
        num_images=len(tree.images),
        images_sha256=tree.identity,
        shard_size=run.shard_size,
        classes=tree.classes,
    )


def _begin(out: Path, settings: Settings) -> None:
    """Write the plan into a new folder, or make sure that the folder was begun with the same one."""
    out.mkdir(parents=True, exist_ok=True)
    plan = out / PLAN
    if not plan.exists():
        if any(out.glob("*.arrayrecord")):
            raise UserError(f"{out} holds shards but no {PLAN}; choose another --out or empty it")
        write_text(plan, latent_shards.to_json(settings))
        return
    before = latent_shards.parse_settings(plan.read_text(), str(plan))
    changed = [name for name in vars(settings) if getattr(settings, name) != getattr(before, name)]
    if changed:
        name = changed[0]
        old, new = (str(getattr(each, name))[:40] for each in (before, settings))
        raise UserError(f"{out} was begun with {name} {old}, now it is {new}; choose another --out or empty it")


@contextlib.contextmanager
def _alone(run: EncodeRun) -> Iterator[None]:
    """Hold this process's lock, which the system drops however the process ends: two writers would mix their temporary files."""
    run.out.mkdir(parents=True, exist_ok=True)
    with (run.out / f".process-{run.process_index}-of-{run.process_count}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another encode is writing process {run.process_index} of {run.process_count} in {run.out}"
            ) from None
        except OSError as error:  # A file system without locks; most network ones have them.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Say what a full or read-only disk means; ArrayRecord reports it as a RuntimeError with the system's words."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)
        if full:
            raise UserError(f"the disk of {out} is full; finished shards are kept: make room and run again") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"cannot write to {out}: {error}") from error
        raise


def _check_space(out: Path, settings: Settings, shards: int) -> None:
    """Refuse to begin what cannot fit; other processes may share the disk, so what passes here can still fill it."""
    images = min(shards * settings.shard_size, settings.num_images)
    needed = images * 2 * int(np.prod(settings.moments_shape))
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(f"{out} has {free / 1e9:.1f} GB free; the {images:,} images left need {needed / 1e9:.1f} GB")


def _resumed(settings: Settings, finished: dict[int, Shard | None]) -> Progress:
    progress = Progress()
    for index, shard in finished.items():
        images = len(_shard_range(settings, index))
        progress.total += images
        if shard is not None:
            progress.done += images
            progress.broken += len(shard.broken)
    progress.resumed = progress.done
    return progress


def _shard_range(settings: Settings, index: int) -> range:
    return range(index * settings.shard_size, min((index + 1) * settings.shard_size, settings.num_images))


def _check_broken(run: EncodeRun, progress: Progress, shards: list[Shard]) -> None:
    if progress.broken > run.max_broken * progress.total:
        path, reason = next(entry for shard in shards for entry in shard.broken)
        raise UserError(
            f"{progress.broken} of {progress.total} images are broken, more than the share {run.max_broken:g} of --max-broken; "
            f"for example {path}: {reason}"
        )


def _encode_shards(
    run: EncodeRun,
    tree: ImageTree,
    settings: Settings,
    model: AutoencoderKL,
    shards: list[int],
    progress: Progress,
    report: Callable[[Progress], None],
) -> None:
    """Encode `shards` in order; decoding runs ahead across their borders."""
    encoder = BatchEncoder(model, run.batch_size)
    batches = [(i, batch) for i in shards for batch in _chunks(_shard_range(settings, i), encoder.batch_size)]
    start, written = time.monotonic(), []
    writer: ShardWriter | None = None
    broken: list[tuple[str, str]] = []
    with contextlib.closing(_encoded(encoder, tree, settings.image_size, batches)) as encoded:
        try:
            for shard, batch, images, moments in encoded:
                if writer is None:
                    writer, broken = ShardWriter(run.out, latent_shards.shard_name(shard)), []
                for index, image in zip(batch, images):
                    path, label = tree.images[index]
                    if isinstance(image, BrokenImage):
                        broken.append((path, str(image)))
                    else:
                        writer.write(Record(next(moments), label, path))
                progress.done += len(batch)
                progress.broken += sum(isinstance(image, BrokenImage) for image in images)
                progress.wall_s = time.monotonic() - start
                report(progress)
                if batch.stop == _shard_range(settings, shard).stop:
                    written.append(writer.finish(broken))
                    writer = None
                    _check_broken(run, progress, written)
        finally:
            if writer is not None:
                writer.abandon()


@partial(jax.jit, static_argnums=0)
def _moments(graph: Any, state: Any, pixels: UInt8[Array, "B H W 3"]) -> Float16[Array, "B 2 2 h w C"]:
    """(image, mirror) x (mean, std) of each square."""
    vae = nnx.merge(graph, state)
    images = jnp.asarray(to_model(pixels))
    posteriors = []
    for view in (images, images[:, :, ::-1]):
        mean, logvar = vae.encode(view)
        posteriors.append(jnp.stack([mean, jnp.exp(0.5 * logvar)], axis=1))
    return jnp.stack(posteriors, axis=1).astype(jnp.float16)


class BatchEncoder:
    """The posterior of batches of squares and of their mirrors, on all devices of this process."""

    def __init__(self, model: AutoencoderKL, per_device: int | None = None):
        devices = jax.local_devices()
        # 16 with their mirrors at 256 px take about 5 GB of activations in Stable Diffusion's encoder.
        per_device = per_device or (4 if devices[0].platform == "cpu" else 16)
        self.batch_size = per_device * len(devices)
        mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
        self._rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
        self._graph, state = nnx.split(model)
        self._state = jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

    def start(self, squares: list[UInt8[np.ndarray, "H W 3"]], size: int) -> jax.Array:
        """Begin encoding at most `batch_size` squares, padded to one compiled shape; the result is (B, mirrors, mean or std, h, w, C)."""
        pixels = np.zeros((self.batch_size, size, size, 3), np.uint8)
        if squares:
            pixels[: len(squares)] = squares
        return _moments(self._graph, self._state, jax.device_put(pixels, self._rows))


Decoded = list[np.ndarray | BrokenImage]


def _encoded(
    encoder: BatchEncoder, tree: ImageTree, size: int, batches: list[tuple[int, range]]
) -> Generator[tuple[int, range, Decoded, Iterator[np.ndarray]], None, None]:
    """(shard, image numbers, images, moments of those that decoded) of each batch, one batch behind the device."""
    behind: tuple[int, range, Decoded, jax.Array] | None = None
    with contextlib.closing(_decoded(tree, size, [batch for _, batch in batches], encoder.batch_size)) as decoded:
        for (shard, batch), images in zip(batches, decoded):
            squares = [image for image in images if not isinstance(image, BrokenImage)]
            started = encoder.start(squares, size)
            if behind is not None:
                yield _fetched(*behind)
            behind = (shard, batch, images, started)
    if behind is not None:
        yield _fetched(*behind)


def _fetched(
    shard: int, batch: range, images: Decoded, moments: jax.Array
) -> tuple[int, range, Decoded, Iterator[np.ndarray]]:
    good = np.asarray(moments)[: sum(not isinstance(image, BrokenImage) for image in images)]
    if not np.isfinite(good).all():
        raise UserError("the autoencoder gives values that float16 cannot hold; are these the right weights?")
    return shard, batch, images, iter(good)


def _decoded(tree: ImageTree, size: int, batches: list[range], batch_size: int) -> Generator[Decoded, None, None]:
    """The squares of each batch in order, decoded on all cores (Pillow lets go of the interpreter while it works)."""
    cores = os.cpu_count() or 1
    ahead = _DECODE_AHEAD + cores // batch_size

    def load(index: int) -> np.ndarray | BrokenImage:
        try:
            return load_square(tree.root / tree.images[index][0], size)
        except BrokenImage as error:
            return error

    pending: deque[list[Future[np.ndarray | BrokenImage]]] = deque()
    pool = ThreadPoolExecutor(cores, thread_name_prefix="decode")
    try:
        for batch in batches:
            pending.append([pool.submit(load, index) for index in batch])
            if len(pending) > ahead:
                yield [future.result() for future in pending.popleft()]
        while pending:
            yield [future.result() for future in pending.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(numbers: range, size: int) -> list[range]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _complete(out: Path, settings: Settings) -> Manifest | None:
    """Write the manifest if every shard of every process is finished; whichever process comes last writes it."""
    names = [latent_shards.shard_name(i) for i in range(settings.num_shards)]
    shards = [latent_shards.finished_shard(out, name) for name in names]
    done = tuple(shard for shard in shards if shard is not None)
    if len(done) < len(shards):
        return None
    manifest = Manifest(settings, done)
    if not manifest.records:
        raise UserError(f"none of the {settings.num_images} images could be decoded, for example {manifest.broken[0]}")
    write_text(out / latent_shards.MANIFEST, latent_shards.to_json(manifest))
    for leftover in out.glob("shard-*.tmp"):  # Of runs that were killed.
        leftover.unlink(missing_ok=True)
    return manifest
