"""What is known of the finished batches of an evaluation under way, in a file of the run's folder that goes when the score is recorded.

A killed evaluation goes on with its next batch and ends with the same bits. The file begins with the SHA-256 of the rest, and says what it
was made of: run, protocol, weights, batch size, devices. One that is damaged, or made of anything else, is left aside and drawn anew.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from dit.design.config import digest
from dit.errors import UserError
from dit.hosts.processes import Processes
from dit.store.files import whole

SAVE_EVERY_S = 30.0
"""Seconds between two writes, so that an evaluation which is quickly done writes nothing."""

_SHA256_BYTES = 32


class KeptSamples:
    """The file at `place`, which process 0 writes once `fence` lets it, and all read; `made_of`: JSON values that decide the bits."""

    def __init__(self, place: Path, made_of: list[Any], processes: Processes, fence: Callable[[], None]):
        devices = [jax.local_device_count(), jax.local_devices()[0].device_kind]
        self._place, self._made_of = place, [*made_of, processes.count, *devices]
        self._processes, self._fence = processes, fence
        self._identity, self._saved = "", time.monotonic()

    def load(self, weights: PyTree) -> dict[str, np.ndarray] | None:
        """What was kept of the same samples: in all processes, or in none if one of them does not see the same file."""
        content = self._read()
        mine = hashlib.sha256(content).hexdigest()
        try:
            self._processes.agree("kept samples", self._problem(self._processes.tell("kept", mine), mine))
        except UserError:
            return None
        if not content:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            if str(arrays["identity"]) != self._of(weights):
                return None
            return {name: arrays[name] for name in arrays.files}

    @staticmethod
    def _problem(theirs: str, mine: str) -> str | None:
        return None if theirs == mine else "not the file that process 0 sees"

    def is_due(self) -> bool:
        """Whether the last write is long enough ago."""
        return time.monotonic() - self._saved >= SAVE_EVERY_S

    def save(self, weights: PyTree, arrays: dict[str, Any]) -> None:
        """Replace the file, whole or not at all."""
        self._saved = time.monotonic()
        if not self._processes.leads:
            return
        content = io.BytesIO()
        np.savez(content, identity=self._of(weights), **arrays)
        with whole(self._place, self._fence) as beside, beside.open("wb") as file:
            file.write(hashlib.sha256(content.getbuffer()).digest())
            file.write(content.getbuffer())

    def _read(self) -> bytes:
        """The file's content if it is whole, else nothing."""
        try:
            data = self._place.read_bytes()
        except FileNotFoundError:
            return b""
        content = data[_SHA256_BYTES:]
        return content if hashlib.sha256(content).digest() == data[:_SHA256_BYTES] else b""

    def _of(self, weights: PyTree) -> str:
        """Stands for everything that the samples were made of; the weights' hash is taken once, and only if something is kept."""
        if not self._identity:
            hashed = hashlib.sha256()
            for leaf in jax.tree.leaves(weights):
                hashed.update(np.ascontiguousarray(jax.device_get(leaf)).data)
            self._identity = digest([*self._made_of, hashed.hexdigest()], 64)
        return self._identity
