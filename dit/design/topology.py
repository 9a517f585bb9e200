"""How many devices a run is spread over, and along which axes. Nothing here imports JAX."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dit.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis: `data` splits the batch, `fsdp` the batch and the weights, `tensor` heads and hidden channels."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def sizes(self) -> tuple[int, int, int]:
        """In the order of `AXES`."""
        return self.data, self.fsdp, self.tensor

    @property
    def devices(self) -> int:
        """Devices it takes."""
        return self.data * self.fsdp * self.tensor

    @property
    def batch_shards(self) -> int:
        """Parts that a batch is cut into."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        return f"data={self.data},fsdp={self.fsdp},tensor={self.tensor}"


def parse_mesh(text: str) -> MeshShape | None:
    """The mesh that `data=4,fsdp=2` names, axes left out being 1; `None` for the empty string.

    Raises:
        UserError: for anything else.
    """
    if not text:
        return None
    pairs = [part.strip().partition("=") for part in text.split(",")]
    sizes = {name: size for name, _, size in pairs}
    known = all(name in AXES and re.fullmatch("[1-9][0-9]*", size) for name, size in sizes.items())
    if not known or len(sizes) < len(pairs):
        raise UserError(f"mesh '{text}': expected sizes of data, fsdp and tensor, such as data=4,fsdp=2")
    return MeshShape(**{name: int(size) for name, size in sizes.items()})


def require_batch(batch_size: int, shape: MeshShape, accumulate: int = 1) -> None:
    """Whether a batch can be cut into equal parts.

    Raises:
        UserError: naming the parts that do not divide it.
    """
    parts = shape.batch_shards * accumulate
    if batch_size % parts:
        steps = f" in {accumulate} accumulated parts" if accumulate > 1 else ""
        raise UserError(
            f"batch_size {batch_size} does not divide over data={shape.data} x fsdp={shape.fsdp}{steps}: expected a multiple of {parts}"
        )
