"""Measured training throughput: what earlier runs logged on the same hardware, by model, batch and precision.

A run's folder says all of it: its configuration, its devices (`environment-<n>.json`) and the images per second of each metric row. On a
CPU a run on c of the machine's n cores counts as c/n of it. A probe file holds the same as JSON, to be committed or carried elsewhere.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit.design.config import Model, RunConfig, digest, from_json
from dit.design.unet import UNetConfig
from dit.errors import UserError
from dit.store.files import read_json, write_json
from dit.store.metrics import read_metrics
from sweeps.hardware import Band, Hardware, cores

SAME_TIME = (
    "block", "patch_size", "depth", "hidden_size", "num_heads", "input_size", "in_channels", "mlp_ratio", "learn_sigma", "qk_norm",
)  # fmt: skip
"""Fields of a DiT that its speed depends on."""
NOT_TIME = ("num_classes", "class_dropout_prob", "size", "ladder")
"""Fields of a U-Net that its speed does not depend on."""

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Probe:
    """Images per second of the whole hardware: tenth percentile, median and ninetieth of `rows` logged rows."""

    hardware: str
    model: dict[str, Any]
    batch_size: int
    precision: str
    images_per_s: Band
    rows: int
    source: str

    @property
    def key(self) -> Key:
        """What a cell must have in common with it."""
        return digest(self.model), self.batch_size, self.precision


def timed(model: Model) -> dict[str, Any]:
    """The fields of a model that its speed depends on."""
    fields = dataclasses.asdict(model)
    names = [name for name in fields if name not in NOT_TIME] if isinstance(model, UNetConfig) else SAME_TIME
    return {name: fields[name] for name in names}


def key_of(run: RunConfig) -> Key:
    """The key under which a cell's probe is found."""
    return digest(timed(run.model)), run.batch_size, run.precision


def load_probes(paths: list[Path], hardware: Hardware) -> dict[Key, Probe]:
    """Probes of that hardware in study folders or probe files; of several for one key, the one with most rows.

    Raises:
        UserError: for a path that is neither, or holds no throughput of that hardware.
    """
    found: dict[Key, Probe] = {}
    for path in paths:
        if (path / "runs").is_dir():
            probes = [probe for folder in sorted((path / "runs").iterdir()) for probe in _of_run(folder, hardware)]
        elif path.is_file():
            probes = [probe for probe in _of_file(path) if probe.hardware == hardware.name]
        else:
            raise UserError(
                f"no probes at {path}: expected a study's folder (it has runs/), or a file of --save-probes"
            )
        if not probes:
            raise UserError(
                f"{path} holds no throughput logged on {hardware.name}: leave it out, or plan for its hardware"
            )
        for probe in probes:
            if probe.key not in found or found[probe.key].rows < probe.rows:
                found[probe.key] = probe
    return found


def save_probes(path: Path, probes: dict[Key, Probe]) -> None:
    """Write probes as a file that `load_probes` reads.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        write_json(path, {"probes": [dataclasses.asdict(probe) for probe in probes.values()]})
    except OSError as error:
        raise UserError(f"cannot write probes to {path}: {error.strerror}") from error


def _of_file(path: Path) -> list[Probe]:
    try:
        value = read_json(path)
        entries = value["probes"] if isinstance(value, dict) else value  # earlier versions wrote the list alone
        return [Probe(**{**entry, "images_per_s": Band(**entry["images_per_s"])}) for entry in entries]
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{path} is not a probe file of this version ({error}): write it again with --save-probes"
        ) from error


def _of_run(folder: Path, hardware: Hardware) -> list[Probe]:
    """The probe of one run's folder, or none: several attempts on different hardware are not told apart and give none."""
    if not (folder / "config.json").is_file():
        return []
    places = [read_json(path) for path in sorted(folder.glob("environment-*.json"))]
    if not places or any(not hardware.is_that_of(place["devices"]) for place in places):
        return []
    rates = [row["images_per_s"] for row in read_metrics(folder) if row.get("images_per_s")]
    if not rates:
        return []
    identity = read_json(folder / "config.json")
    run = from_json({k: v for k, v in identity.items() if k not in ("schema_version", "hash")} | {"steps": 1})
    share = cores() / (places[-1].get("cpus") or cores()) if hardware.name == "cpu" else 1.0
    rate = Band(*(value * share for value in _percentiles(rates)))
    return [Probe(hardware.name, timed(run.model), run.batch_size, run.precision, rate, len(rates), folder.name)]


def _percentiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], statistics.median(values), tenths[-1]
