"""Samples on disk: drawn a shard at a time, resumed where a kill left them, and put together as the ADM suite takes them.

While they are drawn, `FILE.npz.partial/` holds `plan.json` and a file per finished shard. Once every shard is there, one `FILE.npz` is made
of them, with `arr_0` (uint8 NHWC), `arr_1` (labels), `protocol` (how they were drawn, read by `dit evaluate`) and `made_by` (the weights'
and the autoencoder's hashes); `FILE.json` says the same in text. Shard i always holds images [i·shard_size, (i+1)·shard_size), so
neither a kill nor the number of processes changes the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from dit.data.decoding import Decoder, to_images
from dit.design.config import Evaluation
from dit.design.guidance import sampler_of
from dit.design.objectives import ObjectiveConfig
from dit.design.samplers import plan
from dit.errors import UserError
from dit.model.compute import require_precision
from dit.score.sampling import Sampler
from dit.store.files import SCHEMA_VERSION, read_json, whole, write_json
from dit.store.study import Busy, exclusive
from dit.train.restore import Loaded

PLAN = "plan.json"
GRID_IMAGES = 64

Report = Callable[[int, int], None]
"""Told how many images of how many are done."""


@dataclass(frozen=True)
class SampleRun:
    """What to draw and how; `batch_size` and `process_*` leave the result as it is, up to the rounding of other matrix shapes.

    `labels` are taken in turn, image i the i-th of them, around and around; None gives each image a random one of its own. Of `drawn`, its
    step and its features mean nothing here.
    """

    out: Path
    num: int
    drawn: Evaluation
    labels: tuple[int, ...] | None = None
    batch_size: int = 64
    shard_size: int = 1024
    process_index: int = 0
    process_count: int = 1

    @property
    def npz(self) -> Path:
        """The file of samples: `out` itself, or `samples.npz` in it."""
        return self.out if self.out.suffix == ".npz" else self.out / "samples.npz"

    @property
    def num_shards(self) -> int:
        """In how many files the images are drawn, the last one perhaps smaller."""
        return -(-self.num // self.shard_size)

    @property
    def mine(self) -> range:
        """The shards that this process draws."""
        return range(self.process_index, self.num_shards, self.process_count)

    def shard(self, index: int) -> range:
        """The images of a shard."""
        return range(index * self.shard_size, min((index + 1) * self.shard_size, self.num))


def check(run: SampleRun, loaded: Loaded, has_decoder: bool) -> None:
    """Refuse what cannot be drawn, before anything is compiled.

    Raises:
        UserError: for labels that the model has not, steps that its process has not, guidance without a null label, latents without an
            autoencoder, or bfloat16 on a device that has none.
    """
    model = loaded.model
    for name in ("num", "batch_size", "shard_size"):
        if getattr(run, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(run, name)}: expected a positive whole number")
    if not 0 <= run.process_index < run.process_count:
        raise UserError(f"--process-index {run.process_index} is not in 0..{run.process_count - 1} (--process-count)")
    require_precision(run.drawn.precision, jax.local_devices()[0])
    drawn = run.drawn
    plan(
        loaded.objective,
        loaded.diffusion,
        sampler_of(drawn),
        drawn.sampling_steps,
        drawn.sampler_options,
        drawn.cfg_interval,
    )
    wrong = next((label for label in run.labels or () if not 0 <= label < model.num_classes), None)
    if wrong is not None:
        raise UserError(
            f"label {wrong} is none of the model's {model.num_classes} classes: expected 0 to {model.num_classes - 1}"
        )
    if run.drawn.cfg_scale != 1 and not model.class_dropout_prob:
        raise UserError(
            f"--cfg-scale {run.drawn.cfg_scale:g}: this model has no null label to guide away from; leave it at 1"
        )
    if loaded.data.is_latent and not has_decoder:
        raise UserError("the model draws latents: give the autoencoder that decodes them with --vae")
    if has_decoder and not loaded.data.is_latent:
        raise UserError("the model draws pixels, there is nothing to decode: leave --vae out")


def draw(run: SampleRun, loaded: Loaded, decoder: Decoder | None, report: Report = lambda done, total: None) -> bool:
    """Draw this process's shards, and write the file once all are there; whether it is there now.

    Raises:
        UserError: as `check`, or if the output holds other samples, another process is at them, or the disk is full.
    """
    check(run, loaded, decoder is not None)
    if decoder is not None and loaded.latent_factors not in (None, decoder.factors):
        raise UserError(
            f"{loaded.source} was trained on latents of scale and shift {loaded.latent_factors}, the autoencoder {decoder.name} has "
            f"{decoder.factors}: give the one that made them"
        )
    plan = _plan(run, loaded, decoder)
    if run.npz.exists():
        before = run.npz.with_suffix(".json")
        if before.exists() and read_json(before).get("plan") == plan:
            return True
        raise UserError(f"{run.npz} is there already and holds other samples: choose another --out, or move it away")
    partial = run.npz.with_name(f"{run.npz.name}.partial")
    with _disk_errors(partial), _alone(partial, f".process-{run.process_index}.lock"):
        _begin(partial, plan)
        done = sum(len(run.shard(i)) for i in run.mine if _path(partial, i).exists())
        total = sum(len(run.shard(i)) for i in run.mine)
        sampler = Sampler(loaded.apply, loaded.model, loaded.diffusion, run.batch_size, loaded.objective)
        report(done, total)
        for index in run.mine:
            if _path(partial, index).exists():
                continue
            images, labels = [], []
            for batch in _batches(run, loaded, sampler, run.shard(index)):
                images.append(to_images(batch.images, decoder))
                labels.append(batch.labels)
                done += len(batch.labels)
                report(done, total)
            _save(_path(partial, index), np.concatenate(images), np.concatenate(labels))
    return _finish(run, partial, plan)


def _batches(run: SampleRun, loaded: Loaded, sampler: Sampler, images: range) -> Iterator[Any]:
    labels = None if run.labels is None else np.array(run.labels, np.int32)
    return sampler.draw(loaded.params, run.drawn, images.start, images.stop, labels)


def protocol(run: SampleRun, decoder: Decoder | None) -> dict[str, Any]:
    """How the samples were drawn, by the names that `dit evaluate` reads."""
    names = ("sampler", "sampling_steps", "cfg_scale", "cfg_channels", "ema", "sample_seed")
    younger = ("precision", "sampler_options", "sampler_source", "cfg_interval")
    declared = run.drawn.declared
    kept = {name: declared[name] for name in (*names, *younger) if name in declared}
    return {**kept, "decoder": decoder_name(decoder)}


def decoder_name(decoder: Decoder | None) -> str:
    """`<name>@<start of its hash>`: two folders of one name may hold different weights."""
    return "none" if decoder is None else f"{decoder.name}@{decoder.sha256[:12]}"


def _plan(run: SampleRun, loaded: Loaded, decoder: Decoder | None) -> dict[str, Any]:
    """What decides the samples, as it comes back from JSON."""
    value = {
        "protocol": protocol(run, decoder),
        "checkpoint": loaded.source,
        "step": loaded.step,
        "checkpoint_identity": loaded.identity,
        "decoder_sha256": decoder and decoder.sha256,
        "model": dataclasses.asdict(loaded.model),
        "timesteps": loaded.diffusion.timesteps,
        **({"objective": loaded.objective.identity} if loaded.objective != ObjectiveConfig() else {}),
        "num_samples": run.num,
        "labels": run.labels or "random",
        "shard_size": run.shard_size,
    }
    return json.loads(json.dumps(value))


def _begin(partial: Path, plan: dict[str, Any]) -> None:
    path = partial / PLAN
    if not path.exists():
        write_json(path, plan)
    before = read_json(path)
    changed = next((name for name in plan if before.get(name) != plan[name]), None)
    if changed is not None:
        raise UserError(
            f"{partial} was begun with another {changed}: choose another --out, or remove that folder to start over"
        )


def _path(partial: Path, index: int) -> Path:
    return partial / f"shard-{index:05d}.npz"


def _save(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """A shard has its name only once it is whole and on disk."""
    with whole(path) as beside, beside.open("wb") as file:
        np.savez(file, images=images, labels=labels)


def _finish(run: SampleRun, partial: Path, plan: dict[str, Any]) -> bool:
    """Make the file if every process's shards are there; whichever process comes last makes it."""
    with _disk_errors(partial), exclusive(partial / ".finish.lock", wait=True):
        if run.npz.exists():  # another process was quicker
            shutil.rmtree(partial, ignore_errors=True)
            return True
        if not all(_path(partial, i).exists() for i in range(run.num_shards)):
            return False
        with whole(run.npz) as beside:
            _join(beside, run, partial, plan)
            write_json(run.npz.with_suffix(".json"), {"schema_version": SCHEMA_VERSION, "plan": plan})
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _join(path: Path, run: SampleRun, partial: Path, plan: dict[str, Any]) -> None:
    """An uncompressed `.npz` of all shards, a shard in memory at a time, the same bytes whenever it is made."""

    def entry(archive: zipfile.ZipFile, name: str) -> Any:
        return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)

    labels = []
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with entry(archive, "arr_0") as stream:
            for index in range(run.num_shards):
                with np.load(_path(partial, index)) as shard:
                    images = shard["images"]
                    labels.append(shard["labels"])
                if index == 0:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (run.num, *images.shape[1:])}
                    np.lib.format.write_array_header_1_0(stream, header)
                stream.write(images.tobytes())
        made_by = {name: value for name, value in plan.items() if name != "protocol"}
        for name, array in (
            ("arr_1", np.concatenate(labels)),
            ("protocol", np.array(json.dumps(plan["protocol"]))),
            ("made_by", np.array(json.dumps(made_by))),
        ):
            with entry(archive, name) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def grid_of(run: SampleRun) -> UInt8[np.ndarray, "H W C"]:
    """The first images of a finished file, tiled as near to a square as their number goes."""
    from dit.data.image_sets import NpzImages

    images = NpzImages(run.npz)
    count = min(GRID_IMAGES, len(images))
    return tile(next(images.batches(count, 0, count)))


def tile(images: UInt8[np.ndarray, "B H W C"], columns: int | None = None) -> UInt8[np.ndarray, "Y X C"]:
    """Images side by side, row by row; what is missing of the last row is white."""
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    canvas = np.full((rows * columns, height, width, channels), 255, np.uint8)
    canvas[:count] = images
    return (
        canvas.reshape(rows, columns, height, width, channels)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, channels)
    )


@contextlib.contextmanager
def _alone(partial: Path, name: str) -> Iterator[None]:
    try:
        with exclusive(partial / name):
            yield
    except Busy as error:
        raise UserError(
            f"another process is drawing the same part of {partial}: wait for it, or give another --process-index"
        ) from error


@contextlib.contextmanager
def _disk_errors(partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"the disk of {partial} is full; finished shards are kept: make room and run again"
            ) from error
        raise UserError(f"cannot write samples to {partial}: {error.strerror or error}") from error
