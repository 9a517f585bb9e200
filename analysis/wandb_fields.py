"""Which field of a run is where in what somebody's trainer logged, and the configuration that the fields make.

A name is the same with `/` for `.`, `-` for `_` and in capitals, and under a group that only wraps (`cfg.model.depth`). Two that disagree
are refused, never chosen between.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from analysis.wandb_sources import LoggedRun, flat
from dit.design.config import (
    BLOCKS,
    DATASETS,
    LADDERS,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    from_json,
    model_config,
)
from dit.design.metrics import ADM as SCORES
from dit.design.metrics import of_column
from dit.errors import UserError

LOGGED = ("loss", "mse", "vb", "grad_norm", "images_per_s")
PROTOCOL = ("num_samples", "sampler", "sampling_steps", "cfg_scale", "ema", "decoder", "reference", "sample_seed")
COUNTS = ("params", "gflops")
CELL = (
    *("block", "size", "patch_size", "depth", "hidden_size", "num_heads", "ladder"),
    *("dataset", "image_size", "seed", "batch_size", "learning_rate"),
)
_EXAMPLES = {"block": "adaln_zero", "size": "B", "patch_size": "4", "dataset": "imagenet256", "batch_size": "256"} | {
    "num_samples": "50000"
}
_MODEL = ("model", "network", "net", "arch", "dit")
_TRAINING = ("train", "training", "trainer")


def _in(groups: tuple[str, ...], *names: str) -> tuple[str, ...]:
    """The names, then each of them in each group."""
    return (*names, *(f"{group}.{name}" for group in groups for name in names))


USUAL: dict[str, tuple[str, ...]] = {
    "step": ("step", "train.step", "global_step", "trainer.global_step", "train.global_step", "train_steps", "_step"),
    "loss": ("loss", "train.loss", "train_loss", "train loss", "training.loss"),
    "mse": ("mse", "train.mse"),
    "vb": ("vb", "train.vb"),
    "grad_norm": ("grad_norm", "train.grad_norm", "train.gradient_norm"),
    "images_per_s": ("images_per_s",),
    "fid": _in(("eval", "val", "test"), "fid", "fid50k", "fid_50k"),
    "sfid": _in(("eval",), "sfid"),
    "inception_score": _in(("eval",), "inception_score", "is"),
    "precision": ("precision", "eval.precision"),
    "recall": ("recall", "eval.recall"),
    "block": _in(_MODEL, "block", "block_type"),
    "size": ("size", "model_size", *(f"{group}.{name}" for group in _MODEL for name in ("size", "model_size"))),
    "patch_size": ("patch", *_in(_MODEL, "patch_size")),
    "depth": _in(_MODEL, "depth", "num_layers", "n_layers"),
    "hidden_size": _in(_MODEL, "hidden_size", "hidden_dim", "d_model"),
    "num_heads": _in(_MODEL, "num_heads", "n_heads"),
    "ladder": ("ladder", "model.ladder"),
    "dataset": ("dataset", "dataset_name", "data.name", "dataset.name", "data.dataset", "data"),
    "image_size": _in(("data", "dataset"), "image_size", "resolution", "img_size"),
    "seed": _in((*_TRAINING, "experiment"), "seed", "global_seed"),
    "batch_size": (*_in((*_TRAINING, "data"), "global_batch_size"), *_in(_TRAINING, "batch_size"), "data.batch_size"),
    "learning_rate": _in(("optim", "optimizer", "optimizer.params", *_TRAINING), "learning_rate", "lr"),
    "params": _in(_MODEL, "params", "num_params", "n_params", "parameters", "num_parameters", "total_params"),
    "gflops": _in(_MODEL, "gflops"),
}
_MODEL_NAMES = (
    "model",
    "model.name",
    "model_name",
    "model.model",
    "model.type",
    "model._target_",
    "arch",
    "model.arch",
    "network",
)
_RANKED = ("step", "batch_size", *SCORES, *LOGGED)
"""Fields whose first usual name is taken where several are logged: a global batch before one device's."""
_WRAPS = re.compile(r"^((cfg|config|conf|args|hparams|hyperparameters|opts?)\.)+")
_NAMED = re.compile(r"DiT[-_ ]?(?P<size>XL|S|B|L)[-_/ ](?P<patch_size>\d+)", re.IGNORECASE)


@functools.lru_cache(maxsize=65536)
def _usual(column: str) -> str:
    return _WRAPS.sub("", column.strip().lower().replace("/", ".").replace("-", "_"))


@functools.lru_cache(maxsize=65536)
def places(name: str, there: tuple[str, ...]) -> tuple[str, ...]:
    """Those columns which usually hold a field, the likeliest first."""
    order = {one: place for place, one in enumerate(dict.fromkeys((*USUAL.get(name, ()), name)))}
    found = [column for column in there if _usual(column) in order]
    return tuple(sorted(found, key=lambda column: order[_usual(column)]))


@dataclass(frozen=True)
class Fields:
    """Where each field is: under another name (`named`), or stated (`stated`, as text)."""

    named: Mapping[str, str] = field(default_factory=dict)
    stated: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = (*CELL, *COUNTS, *PROTOCOL)
        for name in self.stated:
            if name not in known:
                raise UserError(f"--set {name}: expected one of {', '.join(known)}")

    def of(self, name: str, values: Mapping[str, Any]) -> Any:
        """The field's value; None if there is none.

        Raises:
            UserError: if two columns that usually hold it disagree.
        """
        if name in self.stated:
            return _value(self.stated[name])
        columns = (self.named[name],) if name in self.named else places(name, tuple(values))
        found = {column: values[column] for column in columns if values.get(column) is not None}
        first = next(iter(found.values()), None)
        if name not in _RANKED and any(value != first for value in found.values()):
            there = ", ".join(f"{column}={value!r}" for column, value in found.items())
            raise UserError(f"{name} is told in several ways ({there}): choose with --map {name}=COLUMN")
        return first

    def is_metric(self, name: str) -> bool:
        """Whether a mapped name is one of a run's logged columns that has no name of its own here."""
        return name not in (*CELL, *COUNTS, *PROTOCOL, *SCORES, "step") and of_column(name) is None


def is_own(config: Mapping[str, Any]) -> bool:
    """Whether this package logged the configuration, whole."""
    parts = {"model": ("block", "depth", "hidden_size", "num_heads"), "data": [one.name for one in fields(DataConfig)]}
    return "steps" in config and all(
        isinstance(config.get(name), dict) and set(needed) <= set(config[name]) for name, needed in parts.items()
    )


def cell_values(one: LoggedRun, where: Fields) -> dict[str, Any]:
    """What is told of a run's cell, None for what is not."""
    config = flat(one.config)
    named = next((found for text in _model_names(config, one) if (found := _NAMED.search(text))), None)
    try:
        values = {name: where.of(name, config) for name in CELL}
    except UserError as error:
        raise UserError(f"run {one.label}: {error}") from error
    if named:
        shape = values["depth"] is None or values["hidden_size"] is None
        values["size"] = named["size"].upper() if values["size"] is None and shape else values["size"]
        values["patch_size"] = named["patch_size"] if values["patch_size"] is None else values["patch_size"]
    if isinstance(values["block"], str):
        spelled = re.sub(r"[- ]", "_", values["block"]).lower()
        values["block"] = spelled if spelled in BLOCKS else values["block"]
    return values | {"dataset": _dataset(one, values)}


def _model_names(config: Mapping[str, Any], one: LoggedRun) -> list[str]:
    """Texts that may name the model, the run's own name last."""
    return [str(value) for name, value in config.items() if _usual(name) in _MODEL_NAMES] + [one.name]


def _dataset(one: LoggedRun, values: Mapping[str, Any]) -> Any:
    """The data set's name: as it is told, or ImageNet in the images' size where none is told but a path."""
    told, size = values["dataset"], values["image_size"]
    if told in DATASETS or size is None:
        return told
    plain = told is None or (
        isinstance(told, str) and ("/" in told or re.match(r"(image[-_ ]?net|ilsvrc)", told.lower()))
    )
    return f"imagenet{whole_number(one, 'image_size', size)}" if plain else told


def lacking(one: LoggedRun, where: Fields) -> list[str]:
    """The fields that a cell needs and nothing tells."""
    if is_own(one.config):
        return []
    values = cell_values(one, where)
    if values["depth"] is not None and values["hidden_size"] is not None:
        values["size"] = "custom"
    return [name for name in ("block", "size", "patch_size", "dataset", "batch_size") if values[name] is None]


def how_to_tell(missing: list[str]) -> str:
    """What to give for fields that are missing."""
    stated = " ".join(f"{name}={_EXAMPLES[name]}" for name in missing if name in _EXAMPLES)
    mapped = " ".join(f"{name}=COLUMN" for name in missing)
    return f"give --map {mapped} where they are logged" + (
        f", or --set {stated} with values of your own" * bool(stated)
    )


def run_config(one: LoggedRun, where: Fields, steps: int) -> RunConfig:
    """The configuration of a run: its own if this package logged it, else what the fields tell."""
    config = one.config
    if is_own(config):
        return from_json({name: value for name, value in config.items() if name != "protocols" and name[0] != "_"})
    values = cell_values(one, where)
    for name in ("block", "size", "dataset"):
        if not isinstance(values[name], str | None):
            raise UserError(f"run {one.label}: {name} is {values[name]!r}, expected a name: see --map and --set")
    if values["dataset"] not in DATASETS:
        raise UserError(f"unknown dataset '{values['dataset']}': expected --set dataset={'|'.join(DATASETS)}")
    data = DATASETS[values["dataset"]]
    numbers = {name: whole_number(one, name, values[name] or 0) for name in ("patch_size", "batch_size", "seed")}
    if values["image_size"] is not None and whole_number(one, "image_size", values["image_size"]) != data.image_size:
        raise UserError(
            f"run {one.label}: image_size is {values['image_size']}, that of {data.name} is {data.image_size}: see --map and --set"
        )
    model = _model(one, values, numbers["patch_size"], data)
    rate = values["learning_rate"]
    optim = (
        OptimConfig() if rate is None else replace(OptimConfig(), learning_rate=real_number(one, "learning_rate", rate))
    )
    return RunConfig(model, data, max(steps, 1), numbers["batch_size"], numbers["seed"], optim=optim)


def _model(one: LoggedRun, values: Mapping[str, Any], patch_size: int, data: DataConfig) -> ModelConfig:
    """The model of a row of a ladder, which the shape, if it is told, agrees with or finds; else of that shape."""
    names = ("depth", "hidden_size", "num_heads")
    shape = {name: whole_number(one, name, values[name]) for name in names if values[name] is not None}
    ladder, size = values["ladder"] or "dit", values["size"]
    if size is None and shape:
        rows = {(name, key): row for name, sizes in LADDERS.items() for key, row in sizes.items()}
        same = [key for key, row in rows.items() if all(getattr(row, name) == value for name, value in shape.items())]
        if not same and len(shape) < len(names):
            raise UserError(
                f"run {one.label}: no size has {shape}: give {how_to_tell([n for n in names if n not in shape])}"
            )
        if not same:
            model = model_config(values["block"], "B", patch_size, data)
            return replace(model, size="custom", ladder="custom", **shape)
        ladder, size = same[0]
    model = model_config(values["block"], str(size), patch_size, data, ladder)
    for name, value in shape.items():
        if getattr(model, name) != value:
            raise UserError(
                f"run {one.label}: {name} is {value}, that of size {size} is {getattr(model, name)}: leave the size out, or see --map"
            )
    return model


def logged_counts(one: LoggedRun, where: Fields) -> dict[str, float]:
    """Parameters and Gflops that were logged with a run, which stay as they are."""
    last = {name: value for row in one.rows for name, value in row.items()}
    found: dict[str, float] = {}
    for name in COUNTS:
        for values in (flat(one.config), last):
            told = where.of(name, values)
            if told is not None and name not in found:
                found[name] = (whole_number if name == "params" else real_number)(one, name, told)
    return found


def whole_number(one: LoggedRun, name: str, value: Any) -> int:
    """The value as a whole number; raises a UserError that names run and field if it is none."""
    number = real_number(one, name, value)
    if number != int(number):
        raise UserError(f"run {one.label}: {name} is {value!r}, expected a whole number: see --map and --set")
    return int(number)


def real_number(one: LoggedRun, name: str, value: Any) -> float:
    """The value as a finite number; raises a UserError that names run and field if it is none."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"run {one.label}: {name} is {value!r:.80}, expected a number: see --map and --set")
    return number


def number(value: Any) -> float | int | None:
    """A finite number as it is; None for anything else (wandb logs pictures and tables too)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -math.inf < value < math.inf and abs(value) < 1e300 else None


def not_finite(value: Any) -> bool:
    """Whether it is a NaN or an infinity, as a number or as the text that wandb writes for one."""
    if isinstance(value, str):
        return value.lower().lstrip("+-") in ("nan", "inf", "infinity")
    return isinstance(value, int | float) and number(value) is None and not isinstance(value, bool)


def _value(text: str) -> Any:
    """A stated value: number, true or false, or text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
