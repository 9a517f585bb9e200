"""Trained weights from wherever they lie, as the parameters of our model; and out again under the official names.

A checkpoint, to every verb that takes one, is any of: a run's folder (the newest averaged weights, or those of a step), a folder that
`dit import` wrote, an official DiT file (.pt, .safetensors), or a diffusers folder or file. An imported folder holds

    DIR/config.json        model, data, diffusion; the source's name and sha256; all under one hash
    DIR/ema/00000000/...   the weights, as `dit.train.checkpoint` keeps them: verified on every reading
"""

from __future__ import annotations

import dataclasses
import json
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
    Model,
    RunConfig,
    digest,
    from_json,
    model_from_json,
)
from dit.design.objectives import ObjectiveConfig
from dit.design.unet import UNetConfig
from dit.errors import UserError
from dit.model.compute import compute_on
from dit.model.transformer import applied, network
from dit.store.files import SCHEMA_VERSION, read_json, whole, write_json
from dit.store.manifest import Corrupt
from dit.train.checkpoint import Checkpoints, CheckpointWriter, flatten
from dit.train.step import build
from dit.weights import diffusers_names, official, unet_names
from dit.weights.official_config import Declared, check_positions, infer_data, infer_model
from dit.weights.parts import Part
from dit.weights.torch_pickle import SUFFIXES, find_weights, is_index, read_part, weights_sha256
from dit.weights.unet_config import infer_unet, is_unet
from dit.weights.vae import LATENT_SCALE

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_ANCHORS = ("x_embedder.proj.weight", "pos_embed.proj.weight")
"""The patch embedding, which every DiT has, under its official and its diffusers name."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model with its weights. `step` is None where the source does not say; `identity` hashes what decides the weights.

    `note` says in a line which part of a file they are; `latent_factors` are the scale and shift of a run's latents, where it says them.
    """

    model: Model
    data: DataConfig
    diffusion: DiffusionConfig
    params: PyTree
    step: int | None
    source: str
    identity: str
    note: str = ""
    latent_factors: tuple[float, float] | None = None
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
            _refuse_key(path, declared)
            return _imported(path, value)
        if isinstance(value, dict) and "hash" in value:
            _refuse_key(path, declared)
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
    tensors, part = _read(weights, declared.key)
    if diffusers_names.is_diffusers(tensors):
        if config is not None:
            diffusers_names.check_config(config, str(path))
            declared = Declared(
                declared.num_heads or config.get("num_attention_heads"),
                declared.input_size or config.get("sample_size"),
                declared.num_classes or config.get("num_embeds_ada_norm"),
                declared.key,
            )
        tensors = diffusers_names.to_official(tensors)
    if is_unet(tensors):
        tensors = unet_names.of_release(tensors)
        model: Model = infer_unet(tensors, declared, str(path))
    else:
        model = infer_model(tensors, declared, str(path))
        check_positions(tensors, model, str(path))
    tensors = {name: tensor.astype(np.float32, copy=False) for name, tensor in tensors.items()}
    not_finite = next((name for name, tensor in tensors.items() if not np.isfinite(tensor).all()), None)
    if not_finite is not None:
        raise UserError(
            f"{weights}: tensor '{not_finite}' has values that are not finite: copy or download the file again"
        )
    tree = unet_names.to_ours(tensors, model) if isinstance(model, UNetConfig) else official.to_ours(tensors, model)
    sha256 = weights_sha256(weights)
    # A file of several parts is several sets of weights, of which the one that was always taken keeps the file's own hash.
    identity = sha256 if part.usual else digest({"sha256": sha256, "part": part.label}, 64)
    params = _to_params(tree, model)
    note = part.note if weights == path else part.note.replace(str(weights), f"{path}/{weights.name}", 1)
    return Loaded(model, infer_data(model), DiffusionConfig(), params, None, path.name, identity, note)


def _read(weights: Path, key: str | None) -> tuple[dict[str, np.ndarray], Part]:
    """A DiT's tensors without the prefixes of wrappers; a U-Net's as they are, since its class embedder stands beside it."""
    try:
        return read_part(weights, _ANCHORS, key)
    except UserError:
        tensors, part = read_part(weights, (), key)
        if is_unet(tensors):
            return tensors, part
        raise


def save_imported(loaded: Loaded, out: Path) -> None:
    """Write a folder that `open_checkpoint` takes, whole or not at all.

    Raises:
        UserError: if `out` is there already.
    """
    refuse_existing(out)
    parts = {name: dataclasses.asdict(getattr(loaded, name)) for name in ("model", "data", "diffusion")}
    value = {"schema_version": SCHEMA_VERSION, **parts, "source": loaded.source, "source_sha256": loaded.identity}
    value["hash"] = digest(value, 64)
    with whole(out) as beside:
        with CheckpointWriter(beside / "ema", value["hash"]) as writer:
            writer.save(0, loaded.params)
        write_json(beside / "config.json", value)


def export(loaded: Loaded, out: Path) -> None:
    """Write the weights as `.safetensors` under the official names, whole or not at all.

    Raises:
        UserError: if `out` is there already, is no `.safetensors`, or the block has no official names.
    """
    from safetensors.numpy import save_file

    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: expected a name ending in .safetensors")
    refuse_existing(out)
    tree, model = _to_tree(loaded.params), loaded.model
    flat = unet_names.to_official(tree, model) if isinstance(model, UNetConfig) else official.to_official(tree, model)
    with whole(out) as beside:
        save_file(flat, beside, metadata={"format": "pt"})


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
        weights = find_weights(folder, _STEMS)
        if weights is None:
            raise UserError(
                f"no checkpoint in {path}: expected a run's folder, one of `dit import`, or diffusers' {_STEMS[0]}.safetensors"
            )
    else:
        weights = path
    if weights.suffix not in SUFFIXES and not is_index(weights):
        raise UserError(f"cannot tell what {path} is: expected a folder, or a file ending in {', '.join(SUFFIXES)}")
    config = weights.parent / "config.json"
    try:
        value = json.loads(config.read_text(encoding="utf8")) if config.is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {config} ({error}): copy it again") from error
    return weights, value if isinstance(value, dict) and "_class_name" in value else None


def is_checkpoint(path: Path) -> bool:
    """Whether `open_checkpoint` is meant by a path, rather than images with perhaps a config.json of somebody's beside them."""
    if not path.is_dir():
        return path.suffix in SUFFIXES or is_index(path)
    if (path / "study.json").exists() or any(find_weights(place, _STEMS) for place in (path, path / "transformer")):
        return True
    try:
        value = read_json(path / "config.json")
    except (OSError, ValueError, UserError):
        return False
    return isinstance(value, dict) and bool(value.keys() & {"source_sha256", "hash"})


def _imported(path: Path, value: dict[str, Any]) -> Loaded:
    try:
        model, data = model_from_json(value["model"]), DataConfig(**value["data"])
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
    return Loaded(
        run.model, run.data, run.diffusion, params, step, run.run, identity, "", _factors(path), run.objective
    )


def _factors(path: Path) -> tuple[float, float] | None:
    """Scale and shift of the latents that a run was trained on, as its folder records them."""
    if not (path / "data.json").is_file():
        return None
    value = read_json(path / "data.json")
    found = value.get("latent_factors", [LATENT_SCALE, 0.0]) if isinstance(value, dict) else None
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(n, int | float) for n in found):
        raise UserError(
            f"{path}/data.json does not say the scale and shift of its latents: copy the run's folder again"
        )
    return float(found[0]), float(found[1])


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


def _refuse_key(path: Path, declared: Declared) -> None:
    if declared.key is not None:
        raise UserError(f"--key {declared.key}: {path} holds one set of weights only; leave --key out")


def _network(model: Model) -> tuple[Any, PyTree]:
    """The module's graph, and its parameters' shapes."""
    return nnx.split(nnx.eval_shape(lambda: network(model, rngs=nnx.Rngs(0))))


def _to_params(tree: official.Tree, model: Model) -> PyTree:
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
