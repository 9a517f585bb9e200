"""How a run is carried out: places, devices, cadence. None of it is part of the run's identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dit.design.checks import require_choice, require_positive, require_whole
from dit.design.topology import parse_mesh

Remat = Literal["auto", "none", "dots", "full"]


@dataclass(frozen=True)
class RunArguments:
    """How a run is carried out; none of it changes the result.

    Paths on the user's disk, for runs on latents: `data` as `dit encode` wrote it, `vae` to decode samples, `inception` weights (empty:
    their usual place) and `reference` statistics to score them.

    `mesh` spreads a run over devices ("data=4,fsdp=2"; empty: all of them as data), `remat` recomputes activations to save memory ("auto":
    as little as fits), `accumulate` splits a batch into that many parts one after another, `steps_per_dispatch` is how many steps the
    device gets at once (0: several where a step is short). Results agree to float32's rounding.
    """

    log_every: int = 50
    checkpoint_every: int = 10_000
    keep_checkpoints: int = 2
    sample_batch_size: int = 128
    mesh: str = ""
    remat: Remat = "auto"
    accumulate: int = 1
    steps_per_dispatch: int = 0
    wandb: Literal["off", "offline", "online"] = "off"
    data: str = ""
    vae: str = ""
    inception: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        require_choice(self.remat, get_args(Remat), "remat")
        require_positive(self, "accumulate")
        require_whole(self, "steps_per_dispatch")
        parse_mesh(self.mesh)
