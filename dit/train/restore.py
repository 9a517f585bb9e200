"""Trained weights from wherever they lie, as the parameters of our model; and out again under the official names.

A checkpoint, to every verb that takes one, is any of: a run's folder (the newest averaged weights, or those of a step), a folder that
`dit import` wrote, an official DiT file (.pt, .safetensors), or a diffusers folder or file. An imported folder holds

    DIR/config.json        model, data, diffusion; the source's name and sha256; all under one hash
    DIR/ema/00000000/...   the weights, as `dit.train.checkpoint` keeps them: verified on every reading
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree

from dit.design.config import (
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    RunConfig,
    digest,
    from_json,
)
from dit.design.objectives import ObjectiveConfig
from dit.errors import UserError
from dit.model.compute import compute_on
from dit.model.transformer import DiT, applied
from dit.store.manifest import Corrupt
from dit.store.study import SCHEMA_VERSION, read_json, write_json
from dit.train.checkpoint import Checkpoints, CheckpointWriter, flatten
from dit.train.step import build
from dit.weights import diffusers_names, official
from dit.weights.official_config import Declared, check_positions, infer_data, infer_model
from dit.weights.torch_pickle import read_tensors

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_DIFFUSERS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model with its weights. `step` is None where the source does not say; `identity` hashes what decides the weights."""

    model: ModelConfig
    data: DataConfig
    diffusion: DiffusionConfig
    params: PyTree
    step: int | None
    source: str
    identity: str
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    @property
    def apply(self) -> Callable[[PyTree, Array, Array, Array], Array]:
        """`(params, x, t, y) -> output`, in float32."""
        return applied(self.model, compute_on(jax.devices()[0], "float32", self.model), jax.default_backend())


def open_checkpoint(path: str | Path, step: int | None = None, declared: Declared = Declared()) -> Loaded:  # noqa: B008
    """The model and averaged weights at `path`: a run's folder, an imported one, or an official or diffusers file or folder.

    Args:
        step: which of a run's checkpoints, by default the newest; only runs have several.

    Raises:
        UserError: if there is nothing of the kind, a tensor is missing, extra or misshapen, or the checkpoint is damaged.
    """
    path = Path(path)
    config = path / "config.json"
    if path.is_dir() and (path / "study.json").exists():
        raise UserError(f"{path} is a study: give the folder of one of its runs, {path}/runs/<run>")
    if path.is_dir() and config.is_file():
        value = read_json(config)
        if isinstance(value, dict) and "source_sha256" in value:
            _refuse_step(path, step)
            return _imported(path, value)
        if isinstance(value, dict) and "hash" in value:
            return _of_run(path, value, step)
    if not path.exists():
        raise UserError(
            f"no checkpoint at {path}: expected a run's folder, a folder of `dit import`, or an official DiT file"
        )
    _refuse_step(path, step)
    return read_official(path, declared)


def read_official(path: Path, declared: Declared = Declared()) -> Loaded:  # noqa: B008
    """The model in an official DiT file, or in a diffusers file or folder, its shape read off its tensors.

    Raises:
        UserError: naming what is missing, extra or misshapen, or what the file leaves open.
    """
    weights, config = _find(path)
    tensors = read_tensors(weights)
    if diffusers_names.is_diffusers(tensors):
        if config is not None:
            diffusers_names.check_config(config, str(path))
            declared = Declared(
                declared.num_heads or config.get("num_attention_heads"),
                declared.input_size or config.get("sample_size"),
                declared.num_classes or config.get("num_embeds_ada_norm"),
            )
        tensors = diffusers_names.to_official(tensors)
    model = infer_model(tensors, declared, str(path))
    check_positions(tensors, model, str(path))
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    not_finite = next((name for name, tensor in tensors.items() if not np.isfinite(tensor).all()), None)
    if not_finite is not None:
        raise UserError(
            f"{weights}: tensor '{not_finite}' has values that are not finite: copy or download the file again"
        )
    tree = official.to_ours(tensors, model)
    with weights.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Loaded(model, infer_data(model), DiffusionConfig(), _to_params(tree, model), None, path.name, sha256)


def save_imported(loaded: Loaded, out: Path) -> None:
    """Write a folder that `open_checkpoint` takes, whole or not at all.

    Raises:
        UserError: if `out` is there already.
    """
    refuse_existing(out)
    parts = {name: dataclasses.asdict(getattr(loaded, name)) for name in ("model", "data", "diffusion")}
    value = {"schema_version": SCHEMA_VERSION, **parts, "source": loaded.source, "source_sha256": loaded.identity}
    value["hash"] = digest(value, 64)
    beside = out.with_name(f".{out.name}.writing-{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with CheckpointWriter(beside / "ema", value["hash"]) as writer:
            writer.save(0, loaded.params)
        write_json(beside / "config.json", value)
        os.rename(beside, out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def export(loaded: Loaded, out: Path) -> None:
    """Write the weights as `.safetensors` under the official names, whole or not at all.

    Raises:
        UserError: if `out` is there already, is no `.safetensors`, or the block has no official names.
    """
    from safetensors.numpy import save_file

    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: expected a name ending in .safetensors")
    refuse_existing(out)
    flat = official.to_official(_to_tree(loaded.params), loaded.model)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        save_file(flat, beside, metadata={"format": "pt"})
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)


def refuse_existing(out: Path) -> None:
    """Nothing that exists is written over.

    Raises:
        UserError: if `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} is there already: choose another --out, or move it away")


def _find(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """The weights file at `path`, and the diffusers config beside it where there is one."""
    if path.is_dir():
        folder = path / "transformer" if (path / "transformer").is_dir() else path
        weights = next((folder / name for name in _DIFFUSERS_FILES if (folder / name).is_file()), None)
        if weights is None:
            raise UserError(
                f"no checkpoint in {path}: expected a run's folder, one of `dit import`, or diffusers' {_DIFFUSERS_FILES[0]}"
            )
    else:
        weights = path
    if weights.suffix not in SUFFIXES:
        raise UserError(f"cannot tell what {path} is: expected a folder, or a file ending in {', '.join(SUFFIXES)}")
    config = weights.parent / "config.json"
    try:
        value = json.loads(config.read_text(encoding="utf8")) if config.is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {config} ({error}): copy it again") from error
    return weights, value if isinstance(value, dict) and "_class_name" in value else None


def _imported(path: Path, value: dict[str, Any]) -> Loaded:
    try:
        model, data = ModelConfig(**value["model"]), DataConfig(**value["data"])
        diffusion, source, sha256 = DiffusionConfig(**value["diffusion"]), value["source"], value["source_sha256"]
        identity = value["hash"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}/config.json is not one of `dit import` of this version ({error}): import the file again"
        ) from error
    if digest({key: entry for key, entry in value.items() if key != "hash"}, 64) != identity:
        raise UserError(f"{path}/config.json was changed after it was written: import the file again")
    params = _restore(Checkpoints(path / "ema", identity), 0, _network(model)[1], path)
    return Loaded(model, data, diffusion, params, None, source, sha256)


def _of_run(path: Path, value: dict[str, Any], step: int | None) -> Loaded:
    """The averaged weights of a run: those kept for an evaluation, or those within a training state."""
    fields = {name: entry for name, entry in value.items() if name not in ("schema_version", "hash")}
    run: RunConfig = from_json({**fields, "steps": 1})
    averages, states = Checkpoints(path / "ema", run.hash), Checkpoints(path / "checkpoints", run.hash)
    steps = sorted({*averages.steps(), *states.steps()})
    if not steps:
        raise UserError(f"{path} has no checkpoint yet: wait for its first, or train it with `dit sweep`")
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise UserError(f"{path} has no checkpoint of step {step}: expected one of {', '.join(map(str, steps))}")
    if step in averages.steps():
        params = _restore(averages, step, _network(run.model)[1], path)
    else:
        params = _restore(states, step, jax.eval_shape(build(run).init), path).ema
    identity = digest({"run": run.hash, "step": step}, 64)
    return Loaded(run.model, run.data, run.diffusion, params, step, run.run, identity, run.objective)


def _restore(checkpoints: Checkpoints, step: int, like: Any, path: Path) -> Any:
    try:
        return checkpoints.restore(step, like)
    except Corrupt as error:
        raise UserError(
            f"the checkpoint of step {step} in {path} is damaged ({error}): take another --step, or a copy"
        ) from error


def _refuse_step(path: Path, step: int | None) -> None:
    if step is not None:
        raise UserError(f"--step {step}: {path} holds one set of weights only; leave --step out")


def _network(model: ModelConfig) -> tuple[Any, PyTree]:
    """The module's graph, and its parameters' shapes."""
    return nnx.split(nnx.eval_shape(lambda: DiT(model, rngs=nnx.Rngs(0))))


def _to_params(tree: official.Tree, model: ModelConfig) -> PyTree:
    """The nested arrays of `official.to_ours` as the model's parameters."""
    _, shapes = _network(model)
    arrays = {f"{name}/value": array for name, array in flatten(tree).items()}
    return jax.tree.unflatten(jax.tree.structure(shapes), [jax.numpy.asarray(arrays[name]) for name in flatten(shapes)])


def _to_tree(params: PyTree) -> official.Tree:
    """The inverse of `_to_params`."""
    tree: official.Tree = {}
    for name, array in flatten(params).items():
        *path, last = name.removesuffix("/value").split("/")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = np.asarray(array)
    return tree
