"""A copy of a run's rows in Weights & Biases, for those who like to watch there. Nothing is ever read back from it.

Off by default. Whatever goes wrong in it is reported once and never stops a run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from dit.design.config import RunConfig, to_json

Mode = Literal["off", "offline", "online"]


class Mirror:
    """One run in wandb, under the run's own hash; training compute is the x-axis of the scores."""

    def __init__(self, mode: Mode, run: RunConfig, study: str, folder: Path, warn: Callable[[str], None]):
        self._warn, self._wandb = warn, None
        if mode != "off":
            self._try(self._start, mode, run, study, folder)

    def log(self, row: dict[str, Any]) -> None:
        """Mirror one row; rows hold `step`."""
        if self._wandb is not None:
            self._try(self._wandb.log, {key: value for key, value in row.items() if value is not None})

    def close(self) -> None:
        """Finish the mirrored run."""
        if self._wandb is not None:
            self._try(self._wandb.finish)

    def _start(self, mode: Literal["offline", "online"], run: RunConfig, study: str, folder: Path) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._wandb = wandb.init(
            project="dit-scaling",
            group=study,
            name=run.run,
            id=run.hash,
            resume="allow",
            mode=mode,
            dir=str(folder),
            config=to_json(run),
        )
        self._wandb.define_metric("*", step_metric="step")
        for column in dict.fromkeys(e.column(metric) for e in run.evaluations for metric in e.metrics):
            self._wandb.define_metric(column, step_metric="train_gflops")

    def _try(self, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # the mirror is a convenience: no failure of it may cost a run
            self._wandb = None
            self._warn(f"wandb mirror stopped ({type(error).__name__}: {error}); the run goes on without it")
