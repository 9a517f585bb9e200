"""What is known of the finished batches of a pass over images, in a file that goes when its scores are recorded.

A pass that was killed goes on with its next batch and ends with the same bits. The file begins with the SHA-256 of the rest, and says
what it was made of: images or weights, extractor, batch size, devices. One that is damaged, or made of anything else, is left aside.
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
from dit.store.files import no_fence, whole

SAVE_EVERY_S = 30.0
"""Seconds between two writes, so that a pass which is quickly done writes nothing; more where a write takes long (`SHARE`)."""
SHARE = 0.05
"""Of the time goes into writes at most."""

_SHA256_BYTES = 32


class KeptSamples:
    """The file at `place`; `made_of`: JSON values that decide the bits.

    Of `processes` that share one file process 0 writes it once `fence` lets it, and all read; without them the file is this process's own.
    """

    def __init__(
        self,
        place: Path,
        made_of: list[Any],
        processes: Processes | None = None,
        fence: Callable[[], None] = no_fence,
    ):
        devices = [jax.local_device_count(), jax.local_devices()[0].device_kind]
        self._place, self._made_of = place, [*made_of, processes.count if processes else 1, *devices]
        self._processes, self._fence = processes, fence
        self._identity, self._due = "", time.monotonic() + SAVE_EVERY_S

    def load(self, weights: PyTree = ()) -> dict[str, np.ndarray] | None:
        """What was kept of the same samples: in all processes, or in none if one of them does not see the same file."""
        content = self._read()
        mine = hashlib.sha256(content).hexdigest()
        try:
            if self._processes:
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
        return time.monotonic() >= self._due

    def save(self, arrays: dict[str, Any], weights: PyTree = ()) -> None:
        """Replace the file, whole or not at all."""
        began = time.monotonic()
        if self._processes is None or self._processes.leads:
            self._write(arrays, weights)
        now = time.monotonic()
        self._due = now + max(SAVE_EVERY_S, (now - began) / SHARE if SAVE_EVERY_S else 0.0)

    def _write(self, arrays: dict[str, Any], weights: PyTree) -> None:
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
