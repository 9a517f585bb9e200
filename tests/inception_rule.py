"""The weights that `golden/inception.npz` was made with, by the rule in its notes: every tensor from its own name and a seed."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "inception.npz"


def weights() -> dict[str, np.ndarray]:
    """PyTorch name -> float32 array."""
    state = {}
    with np.load(GOLDEN) as golden:
        seed, entries = int(golden["seed"]), [str(entry).split(":") for entry in golden["shapes"]]
    for name, text in entries:
        if name.endswith("num_batches_tracked"):
            continue
        shape = tuple(int(size) for size in text.strip("()").split(",") if size.strip())
        noise = np.random.default_rng(zlib.crc32(name.encode()) + seed).standard_normal(shape)
        if name.endswith("running_var"):
            value = 1 + 0.2 * np.abs(noise)
        elif name.endswith(("running_mean", "bias")):
            value = 0.1 * noise
        elif name.endswith("bn.weight"):
            value = 1 + 0.1 * noise
        else:
            value = noise * np.sqrt(2 / np.prod(shape[1:]))
        state[name] = value.astype(np.float32)
    return state
