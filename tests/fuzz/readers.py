"""Every reader of files from elsewhere: how to make a sound file, how to read it to the end, and how its mutants are made."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mutants
import numpy as np
import pandas as pd
from synthetic_study import cells, write_study

GOLDEN = Path(__file__).parents[1] / "golden"
Mutate = Callable[[bytes, random.Random], tuple[bytes, bool]]


@dataclass(frozen=True)
class Reader:
    """`make` writes a sound file into a folder of its own; `read` gives all that it says, a set where parts may be left out with a word.

    `vouched` is what tells that the file carries checksums: a mutant that still has it and says anything else must be refused, unless its
    checksums were mended.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    mutate: Mutate = mutants.of_plain
    vouched: bytes | None = None


def _copy(name: str) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copy(GOLDEN / name, folder))


def _tensors(path: Path) -> Any:
    from dit.weights.torch_pickle import read_tensors

    return {
        name: (one.shape, str(one.dtype), hashlib.sha256(one.tobytes()).hexdigest())
        for name, one in read_tensors(path).items()
    }


def _small_safetensors(folder: Path) -> Path:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    save_file(
        {f"layer.{at}.weight": rng.normal(size=(3, at + 1)).astype(np.float32) for at in range(4)},
        folder / "x.safetensors",
    )
    return folder / "x.safetensors"


def _npz_images(folder: Path) -> Path:
    np.savez(
        folder / "x.npz",
        arr_0=np.arange(5 * 8 * 8 * 3, dtype=np.uint8).reshape(5, 8, 8, 3),
        protocol=json.dumps({"ema": True}),
    )
    return folder / "x.npz"


def _images(path: Path) -> Any:
    from dit.data.image_sets import open_images

    images = open_images(str(path), 3)
    batches = [batch.tobytes() for batch in images.batches(2, 0, len(images))]
    return len(images), hashlib.sha256(b"".join(batches)).hexdigest(), json.dumps(images.protocol, sort_keys=True)


EXTRACTOR = SimpleNamespace(name="digits", weights_sha256="a" * 64, resize="none", channels=1, metric_suffix="digits")


def _reference(folder: Path) -> Path:
    factor = np.random.default_rng(0).normal(size=(20, 4))
    made_by = {
        "extractor": "digits",
        "extractor_sha256": "a" * 64,
        "resize": "none",
        "num_images": 20,
        "source": "x",
        "source_sha256": "b",
    }
    arrays = {"mu": factor.mean(0), "sigma": np.cov(factor.T), "features": factor.astype(np.float32)}
    np.savez(folder / "x.npz", allow_pickle=False, made_by=json.dumps(made_by), **arrays)
    return folder / "x.npz"


def _read_reference(path: Path) -> Any:
    from dit.score import reference

    found = reference.load(str(path), EXTRACTOR, 8)
    arrays = (found.pooled.mean, found.pooled.covariance, found.features)
    return [hashlib.sha256(one.tobytes()).hexdigest() for one in arrays], json.dumps(found.made_by, sort_keys=True)


def _picture(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from PIL import Image

        rows, columns = np.mgrid[0:40, 0:30]
        Image.fromarray(np.stack([rows * 6, columns * 8, rows + columns], -1).astype(np.uint8)).save(
            folder / f"x{suffix}"
        )
        return folder / f"x{suffix}"

    return make


def _square(path: Path) -> Any:
    from dit.data.images import load_square

    return hashlib.sha256(load_square(path, 16).tobytes()).hexdigest()


def _latents(mutated: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from dit.data.shards import MANIFEST, Manifest, Record, Settings, ShardWriter, shard_name, to_json
        from dit.store.files import write_text

        shards = []
        for at in range(2):
            writer = ShardWriter(folder, shard_name(at))
            for index in range(4):
                writer.write(Record(np.full((2, 2, 2, 2, 4), index, np.float16), index % 3, f"class/{at}-{index}.jpg"))
            shards.append(writer.finish([]))
        settings = Settings("vae", 16, 2, 4, 0.18215, "float32", 8, "images", 4, ("a", "b", "c"))
        write_text(folder / MANIFEST, to_json(Manifest(settings, tuple(shards))))
        return folder / (MANIFEST if mutated == "manifest" else shard_name(0))

    return make


def _read_latents(path: Path) -> Any:
    from dit.data.latents import LatentSource
    from dit.data.shards import open_latents

    folder, manifest = open_latents(path.parent)
    source = LatentSource(folder, manifest)
    records = [source[at] for at in range(len(source))]
    return repr(manifest), [
        (one.label, one.image_id, hashlib.sha256(one.moments.tobytes()).hexdigest()) for one in records
    ]


def _study(pattern: str, scored: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        runs = cells(
            blocks=("adaln_zero",),
            sizes=("S", "B", "L", "XL") if scored else ("S", "B"),
            patches=(2, 1) if scored else (4,),
        )
        study = write_study(folder / "study", runs, failed={} if scored else {1: "stopped"})
        _add_records(study, runs, scored)
        return sorted(study.glob(pattern))[0]

    return make


def _add_records(study: Path, runs: Any, scored: bool) -> None:
    """What a study holds beside its scores: attempts, arguments, a forecast, a figure."""
    from dit.design.config import RunArguments
    from dit.store.lease import Attempt, run_files
    from sweeps import arguments

    for run in runs:
        (study / "runs" / run.run / "attempts").mkdir(exist_ok=True)
        owner = {"host": "here", "pid": 1, "boot": "b", "started": "s"}
        run_files(study / "runs" / run.run).create(
            "0001.json", Attempt(1, owner, 3, 60.0, 2.5, "done", {"step": 10}).to_bytes()
        )
    arguments.save(study, RunArguments(log_every=7, data="/data"))
    if scored:
        from analysis import forecast
        from analysis.figures.registry import draw_all
        from analysis.results import collect

        (study / "forecasts").mkdir()
        found = collect(study)
        forecast.save(
            forecast.freeze(found, "size == 'XL' and patch_size == 1", retrospective=True), study / "forecasts"
        )
        list(draw_all(found, study / "figures", ["fig8"]))


def _folder(path: Path) -> Path:
    return next(one for one in path.parents if one.name == "study")


def _rows(table: pd.DataFrame) -> set[str]:
    """Each row as text; whole numbers are the same as integers and as floats, which a gap elsewhere makes of them."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return {repr({name: float(one) if type(one) is int else one for name, one in row.items()}) for row in rows}


def _read_study(path: Path) -> Any:
    from analysis import records
    from analysis.results import collect, losses

    folder = _folder(path)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    states = records.statuses(folder, records.cells(folder))
    return _rows(collect(folder).table) | _rows(losses(folder)) | _rows(states[states["state"] != records.DAMAGED])


def _store(path: Path) -> Any:
    from dit.store.study import RunStore, load_study

    [run] = [run for run in load_study(_folder(path)).runs if f"runs/{run.run}/" in str(path)]
    return RunStore(_folder(path), run)


def _read_status(path: Path) -> Any:
    return json.dumps(_store(path).status(), sort_keys=True)


def _read_metrics(path: Path) -> Any:
    return json.dumps(_store(path).metrics(), sort_keys=True)


def _read_evaluations(path: Path) -> Any:
    from analysis import records
    from dit.errors import UserError

    shutil.rmtree(_folder(path) / "cache", ignore_errors=True)
    table = records.scores(_folder(path), [path.parents[1].name])
    if (damaged := table["status"] == records.DAMAGED).any():
        raise UserError(table.loc[damaged, "reason"].iloc[0])
    return _rows(table)


def _read_config(path: Path) -> Any:
    from dit.store.files import read_json
    from dit.store.study import RunStore, load_study

    for run in load_study(_folder(path)).runs:
        RunStore(_folder(path), run).check_identity()
    return json.dumps(read_json(path), sort_keys=True)


def _read_attempts(path: Path) -> Any:
    from dit.errors import UserError
    from dit.store.lease import Attempt, attempts, run_files

    found = attempts(run_files(path.parents[1]))
    if found == [Attempt(1)]:
        raise UserError("it counts as silent from the start")
    return repr(found)


def _read_arguments(path: Path) -> Any:
    from sweeps import arguments

    return repr(arguments.load(path.parent))


def _read_forecasts(path: Path) -> Any:
    from analysis.forecast import score_all
    from analysis.results import collect
    from dit.errors import UserError

    [found] = score_all(collect(path.parents[1]), path.parents[1] / "forecasts")
    if found.trouble:
        raise UserError(found.trouble)
    return repr(found)


def _read_sidecar(path: Path) -> Any:
    from analysis.figures.verification import verify
    from analysis.results import collect
    from dit.errors import UserError

    [verdict] = verify(collect(path.parents[1]), path.parent, ["fig8"])
    if verdict.stale or verdict.absent:
        raise UserError(str(verdict.stale or verdict.absent))
    return "fresh"


def _checkpoint(folder: Path) -> Path:
    from dit.store import manifest

    (folder / "10").mkdir()
    (folder / "10" / "array").write_bytes(b"0123456789")
    manifest.seal(folder / "10", "identity", 10)
    return folder / "10" / manifest.NAME


def _read_checkpoint(path: Path) -> Any:
    from dit.errors import UserError
    from dit.store import manifest

    try:
        manifest.verify(path.parent, "identity")
    except manifest.Corrupt as error:
        raise UserError(str(error)) from error
    return repr(manifest.read(path.parent))


def _archive(folder: Path) -> Path:
    from dit.store.archives import pack

    return pack(_folder(_study("study.json")(folder)), folder / "study.tar.xz")


def _read_archive(path: Path) -> Any:
    from dit.store.archives import unpacked

    cache = path.parent / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    before, os.environ["DIT_CACHE"] = os.environ.get("DIT_CACHE", ""), str(cache)
    try:
        place = unpacked(path)
    finally:
        os.environ["DIT_CACHE"] = before
    return {
        str(one.relative_to(place)): hashlib.sha256(one.read_bytes()).hexdigest()
        for one in place.rglob("*")
        if one.is_file()
    }


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return make


WHERE = "block in ['adaln', \"adaln_zero\"] and not (size == 'S' or patch_size * 2 >= 4) and -fid + 1e2 > 3.5 / seed"
TABLE = pd.DataFrame(
    {"block": ["adaln", "in_context"], "size": ["S", "B"], "patch_size": [4, 2], "fid": [3.5, None], "seed": [1, 0]}
)


def _where(path: Path) -> Any:
    from dit.design.query import filter_rows
    from dit.errors import UserError

    try:
        text = path.read_text()
    except UnicodeDecodeError as error:  # a command line has text alone
        raise UserError("no text") from error
    return _rows(filter_rows(TABLE, text))


def _prices(path: Path) -> Any:
    from sweeps.prices import load_prices

    return repr(load_prices(path))


PRICES = '[h100]\nusd = 2.5\nlow = 2\nhigh = 4.0\nas_of = 2026-05-01\nsource = "x"\n\n[tpu-v5e]\nusd = 1.2\nas_of = 2026-05-01\n'
HISTORY = "".join(
    f'{{"_step": {at}, "train/step": {100 * at}, "loss": {1 / at}, "fid": {50 - at}}}\n' for at in range(1, 5)
)
CSV = """Name,State,ID,model,seed,image_size,global_batch_size,train/step,loss
one,finished,a,DiT-S/8,0,256,256,400,0.5
two,crashed,b,DiT-B/8,0,256,256,200,0.25
"""
_CONFIG = {"model": {"depth": 12}, "seed": {"value": 1}}
_ROWS = [{"step": 5, "loss": 0.5}, {"step": 7, "loss": "NaN"}]
WHOLE = json.dumps([{"name": "DiT-S/8", "id": "a", "config": _CONFIG, "history": _ROWS}])
CHART = "Step,one - loss,one - loss__MIN,one - loss__MAX,one - fid\n10,0.5,0.5,0.5,75\n20,0.25,0.25,0.25,50\n"


def _offline(folder: Path) -> Path:
    import wandb

    os.environ["WANDB_SILENT"] = "true"
    run = wandb.init(
        project="dit", name="DiT-S/8", mode="offline", dir=str(folder), config={"image_size": 256, "seed": 3}
    )
    for step in (100, 200):
        run.log({"train/step": step, "train/loss": 1 / step})
    run.finish()
    wandb.teardown()
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    return path


LOG = (
    "[2023-01-01 11:59:00] Experiment directory created at results/000-DiT-B-4\nDiT Parameters: 130,426,496\n"
    + "".join(
        f"[2023-01-01 12:00:00] (step={step:07d}) Train Loss: {20 / step:.4f}, Train Steps/Sec: 5.67\n"
        for step in range(100, 900, 100)
    )
)


def _logs(path: Path) -> Any:
    from analysis.log_import import read_logs

    found = read_logs(path, None, {"size": "B", "patch_size": 4})
    return repr([(one.config, one.rows, one.state) for one in found])


def _imported(path: Path) -> Any:
    from analysis.results import losses
    from analysis.wandb_import import Fields, import_runs
    from analysis.wandb_sources import read_files
    from dit.errors import UserError
    from dit.store.study import RunStore

    out = path.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    stated = {"block": "adaln_zero", "num_samples": "10", "dataset": "imagenet256", "batch_size": "256"}
    stated |= {} if path.name == "table.csv" else {"size": "S", "patch_size": "8"}
    study = import_runs(read_files([path]), Fields({}, stated), "x", "x", out)
    if (
        any("crashed" in str(RunStore(out, run).status().get("reason")) for run in study.runs)
        and path.suffix == ".wandb"
    ):
        raise UserError("it is torn, and the run counts as crashed")
    return (
        _rows(losses(out))
        | {repr(run) for run in study.runs}
        | {RunStore(out, run).status()["state"] for run in study.runs}
    )


def _vae(path: Path) -> Any:
    from dit.weights.vae_weights import read_config

    return repr(read_config(path))


def _kept(path: Path) -> Any:
    from analysis.figures.samples import _images as read

    return [hashlib.sha256(one.tobytes()).hexdigest() for one in read(path)]


READERS = {
    one.name: one
    for one in (
        Reader("torch", _copy("torch_checkpoint.pt"), _tensors, mutants.of_zip),
        Reader("torch-own", _copy("torch_own/subclass.pt"), _tensors, mutants.of_zip),
        Reader("torch-legacy", _copy("torch_legacy.pt"), _tensors),
        Reader("torch-legacy-flat", _copy("torch_own/legacy_flat.pt"), _tensors),
        Reader("safetensors", _small_safetensors, _tensors, mutants.of_safetensors),
        Reader("samples", _npz_images, _images, mutants.of_zip),
        Reader("reference", _reference, _read_reference, mutants.of_zip),
        Reader("png", _picture(".png"), _square),
        Reader("jpeg", _picture(".jpg"), _square),
        Reader("tiff", _picture(".tif"), _square),
        Reader("shard", _latents("shard"), _read_latents, vouched=b""),
        Reader("latents-manifest", _latents("manifest"), _read_latents, mutants.of_json),
        Reader("vae-config", _copy("vae_tiny.json"), _vae, mutants.of_json),
        Reader("study", _study("study.json"), _read_study, mutants.of_json, b"sha256:"),
        Reader("config", _study("runs/*/config.json"), _read_config, mutants.of_json, b"sha256:"),
        Reader("results", _study("runs/*/evals/*.json"), _read_study, mutants.of_json, b"sha256:"),
        Reader("status", _study("runs/*/status.json"), _read_status, mutants.of_json, b"sha256:"),
        Reader("evaluation", _study("runs/*/evals/*.json"), _read_evaluations, mutants.of_json, b"sha256:"),
        Reader("metrics", _study("runs/*/metrics/0001.jsonl"), _read_metrics, mutants.of_lines, b""),
        Reader("attempt", _study("runs/*/attempts/0001.json"), _read_attempts, mutants.of_json, b"sha256:"),
        Reader("arguments", _study("arguments.json"), _read_arguments, mutants.of_json, b"sha256:"),
        Reader("kept-samples", _study("runs/*/samples/*.npz"), _kept, mutants.of_zip),
        Reader("checkpoint", _checkpoint, _read_checkpoint, mutants.of_json, b'"digest"'),
        Reader("archive", _archive, _read_archive, vouched=b""),
        Reader("forecast", _study("forecasts/*.json", scored=True), _read_forecasts, mutants.of_json, b"sha256:"),
        Reader("figure", _study("figures/fig8.json", scored=True), _read_sidecar, mutants.of_json, b"sha256:"),
        Reader("where", _text("x", WHERE), _where),
        Reader("prices", _text("prices.toml", PRICES), _prices),
        Reader("log", _text("log.txt", LOG), _logs),
        Reader("wandb-history", _text("x.jsonl", HISTORY), _imported, mutants.of_lines),
        Reader("wandb-table", _text("table.csv", CSV), _imported),
        Reader("wandb-chart", _text("x.csv", CHART), _imported),
        Reader("wandb-whole", _text("x.json", WHOLE), _imported, mutants.of_json),
        Reader("wandb-offline", _offline, _imported, vouched=b""),
    )
}
