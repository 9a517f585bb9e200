"""Weights of the FID Inception, from whichever file is at hand; nothing is ever downloaded.

Taken: the usual PyTorch file `pt_inception-2015-12-05-6726825d.pth`, torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`,
a `.safetensors` with the same names, and the original frozen graph `classify_image_graph_def.pb`. Their hash is taken over names and
values, not over the file, so the same weights have the same hash in every container and statistics made with either compare.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np

from dit.errors import UserError
from dit.score import graph_def
from dit.score.inception import CONVOLUTIONS, NUM_CLASSES, POOLED, STEM, Folded
from dit.store.environment import cache_folder
from dit.weights.torch_pickle import read_tensors

EPSILON = 1e-3
"""Of the batch normalisation."""

PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
VARIABLE = "DIT_INCEPTION_WEIGHTS"
"""Environment variable that names the weights file."""

_NORMS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def _expected() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (NUM_CLASSES, POOLED), "fc.bias": (NUM_CLASSES,)}
    for name, (height, width, channels, out) in CONVOLUTIONS.items():
        shapes[f"{name}.conv.weight"] = (out, channels, height, width)
        shapes |= {f"{name}.bn.{norm}": (out,) for norm in _NORMS}
    return shapes


EXPECTED = _expected()
"""Every tensor by its PyTorch name, with its shape."""


def locate(path: Path | None) -> Path:
    """The weights file: the one given, else the one the environment names, else the default place.

    Raises:
        UserError: if it is not there; the message says where to put it.
    """
    usual = cache_folder() / PUBLISHED
    found = (path or Path(os.environ.get(VARIABLE, usual))).expanduser()
    if not found.is_file():
        raise UserError(
            f"no Inception weights at {found}: expected the published file {PUBLISHED} (or torch-fidelity's, "
            f"or classify_image_graph_def.pb); put it at {usual}, or name it by --weights PATH or {VARIABLE}"
        )
    return found


def load(path: Path) -> tuple[Folded, str]:
    """The weights, ready for `dit.score.inception.Inception`, and their hash.

    Raises:
        UserError: if the file is damaged, is not what its name says, or a tensor is missing, unknown or of another shape.
    """
    state = read(path)
    return fold(state), weights_hash(state)


def read(path: Path) -> dict[str, np.ndarray]:
    """Checked tensors in float32 by their PyTorch names."""
    try:
        _check_name(path)
        state = _from_graph(path) if path.suffix == ".pb" else read_tensors(path, ("Conv2d_1a_3x3.conv.weight",))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    return check(state, str(path))


def check(state: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The tensors in float32, once names, shapes and values are what the network takes."""
    missing = [name for name in EXPECTED if name not in state]
    if missing:
        raise UserError(
            f"{source} lacks tensor '{missing[0]}' ({len(missing)} missing in all): expected the FID Inception of 2015-12-05"
        )
    extra = [name for name in state if name not in EXPECTED]
    if extra:
        raise UserError(
            f"{source} has an unknown tensor '{extra[0]}' ({len(extra)} in all): expected the FID Inception of 2015-12-05"
        )
    for name, shape in EXPECTED.items():
        if state[name].shape != shape:
            raise UserError(
                f"{source}: tensor '{name}' has shape {state[name].shape}, expected {shape}: it is of another network"
            )
        if not np.isfinite(state[name]).all():
            raise UserError(
                f"{source}: tensor '{name}' has values that are not finite: copy or download the file again"
            )
    return {name: np.ascontiguousarray(state[name], np.float32) for name in EXPECTED}


def fold(state: dict[str, np.ndarray]) -> Folded:
    """Normalisation folded into the convolutions, in float64: one rounding of each weight."""
    convolutions = {}
    for name in CONVOLUTIONS:
        gamma, beta, mean, variance = (state[f"{name}.bn.{norm}"].astype(np.float64) for norm in _NORMS)
        scale = gamma / np.sqrt(variance + EPSILON)
        kernel = state[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * scale
        convolutions[name] = (kernel.astype(np.float32), (beta - mean * scale).astype(np.float32))
    return Folded(convolutions, (np.ascontiguousarray(state["fc.weight"].T), state["fc.bias"]))


def weights_hash(state: dict[str, np.ndarray]) -> str:
    """SHA-256 over names and float32 values, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(state[name], "<f4").tobytes())
    return digest.hexdigest()


def random(seed: int) -> dict[str, np.ndarray]:
    """Random weights that keep activations near unit scale: for demonstrations and speed, never for a score."""
    generator = np.random.default_rng(seed)
    state = {}
    for name, shape in EXPECTED.items():
        noise = generator.standard_normal(shape, np.float32)
        if name.endswith(("bn.weight", "running_var")):
            state[name] = 1 + 0.1 * np.abs(noise)
        elif len(shape) == 1:
            state[name] = 0.1 * noise
        else:
            state[name] = noise * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    return state


def _check_name(path: Path) -> None:
    """Files published through PyTorch's hub carry the start of their SHA-256 in their name."""
    named = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if named is None:
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(named[1]):
        raise UserError(
            f"{path} has SHA-256 {actual[:8]}..., its name says {named[1]}: it is damaged or renamed, copy it again"
        )


def _from_graph(path: Path) -> dict[str, np.ndarray]:
    constants = graph_def.read_constants(path)
    state = {}
    for name, source in tensorflow_names().items():
        if source not in constants:
            raise UserError(
                f"{path} lacks tensor '{source}': expected the frozen graph classify_image_graph_def.pb of 2015-12-05"
            )
        value = constants[source]
        state[name] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return state


def tensorflow_names() -> dict[str, str]:
    """PyTorch's name of each tensor -> that of the graph's constant."""
    scopes = {name: f"conv_{i}" if i else "conv" for i, name in enumerate(STEM)}
    blocks = list(dict.fromkeys(name.partition(".")[0] for name in CONVOLUTIONS if "." in name))
    for name in CONVOLUTIONS:
        block, _, branch = name.partition(".")
        if branch:
            index = blocks.index(block)
            scopes[name] = (
                f"mixed_{index}/{_branch_scope(block, branch)}" if index else f"mixed/{_branch_scope(block, branch)}"
            )
    names = {"fc.weight": "softmax/weights", "fc.bias": "softmax/biases"}
    for name, scope in scopes.items():
        names[f"{name}.conv.weight"] = f"{scope}/conv2d_params"
        names |= {f"{name}.bn.{norm}": f"{scope}/batchnorm/{constant}" for norm, constant in _NORMS.items()}
    return names


def _branch_scope(block: str, branch: str) -> str:
    """`branch7x7dbl_3` -> `tower_1/conv_2`: towers count the branches that are chains, in order, convolutions count along each."""
    if branch == "branch1x1" or (block == "Mixed_6a" and branch == "branch3x3"):
        return "conv"
    if branch == "branch_pool":
        return "tower_2/conv"
    chain, step = branch.rsplit("_", 1)
    tower = "tower_1" if chain in ("branch3x3dbl", "branch7x7dbl", "branch7x7x3") and block != "Mixed_6a" else "tower"
    if step[-1] in "ab":  # the two halves of a split last step
        return f"{tower}/mixed/conv" if step[-1] == "a" else f"{tower}/mixed/conv_1"
    return f"{tower}/conv" if step == "1" else f"{tower}/conv_{int(step) - 1}"
