"""Training batches from a folder of latents, through Grain: a global batch is a function of (seed, step) and nothing else.

Example positions run on for ever: global batch b is positions [b*B, (b+1)*B) of the shuffled, repeated records, a new order each
epoch. A process takes the rows of a batch that its devices hold, so 1, 2 and 4 processes see the same records, and the noise and the
mirror of an example are keyed by its position, so they see the same latents too. Resuming needs the step alone.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import SupportsIndex

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Float32, Int32

from dit.data.shards import Manifest, Record, open_latents, unpack
from dit.errors import UserError

# Every float16 in float32: looking one up is three times faster than NumPy's conversion.
_FLOAT32 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


class LatentSource:
    """The records of a folder of latents by index: a random-access data source in Grain's sense, safe to share among threads."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.manifest = manifest
        self._shape = manifest.settings.moments_shape
        # A shard all of whose images were broken has no records, and nothing to open.
        self._shards = [shard for shard in manifest.shards if shard.records]
        self._ends = list(itertools.accumulate(shard.records for shard in self._shards))
        # Random access: reading ahead would only fetch what is thrown away.
        open_reader = partial(ArrayRecordReader, options="readahead_buffer_size:0", file_reader_buffer_size=2**15)
        self._readers = [open_reader(str(folder / shard.name)) for shard in self._shards]
        for shard, reader in zip(self._shards, self._readers):
            if reader.num_records() != shard.records:
                raise UserError(
                    f"{shard.name} in {folder} has {reader.num_records()} records; expected {shard.records}"
                )

    def __len__(self) -> int:
        return self.manifest.records

    def __getitem__(self, index: SupportsIndex) -> Record:
        number = index.__index__()
        which = bisect.bisect_right(self._ends, number)
        shard = self._shards[which]
        try:
            data = self._readers[which].read([number - self._ends[which] + shard.records])[0]
            return unpack(data, self._shape)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"shard {shard.name} is corrupted: record {number} cannot be read ({error})") from error


def latent_batch(
    order: grain.MapDataset, positions: Sequence[int], seed: int, scale: float, shift: float = 0.0
) -> tuple[Float32[np.ndarray, "B h w C"], Int32[np.ndarray, "B"]]:
    """Shifted and scaled latents and labels of the examples at `positions` of the infinite `order` of records.

    Each is sampled from its posterior, of the image or its mirror with even odds, by a Philox stream keyed (seed, position).
    """
    moments, labels, noise = [], [], []
    for position in positions:
        record = order[position]
        assert isinstance(record, Record)
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))
        moments.append(record.moments[rng.integers(2)])
        noise.append(rng.standard_normal(record.moments.shape[2:], np.float32))
        labels.append(record.label)
    mean, std = _FLOAT32.take(np.stack(moments, axis=1).view(np.uint16))
    latents = mean + std * np.stack(noise)
    return (latents - np.float32(shift) if shift else latents) * np.float32(scale), np.array(labels, np.int32)


class LatentDataset:
    """`batch(step)` gives this process's `rows` of the global batch of that step (all of them if `None`), prepared ahead on threads."""

    def __init__(
        self,
        path: str | Path,
        batch_size: int,
        seed: int,
        rows: Int32[np.ndarray, "R"] | None = None,
        *,
        verify: bool = True,
        prefetch: int = 2,
    ):
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: expected a positive whole number")
        self._rows = np.arange(batch_size) if rows is None else np.asarray(rows)
        if not len(self._rows) or self._rows.min() < 0 or self._rows.max() >= batch_size:
            raise UserError(f"rows {self._rows.tolist()} are not among the 0..{batch_size - 1} of a batch")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed {seed} is out of range; expected 0 to {2**32 - 1}")
        folder, self.manifest = open_latents(path, verify=verify)
        self.num_classes = self.manifest.num_classes
        settings = self.manifest.settings
        self.example_shape = (settings.latent_size, settings.latent_size, settings.latent_channels)
        source = LatentSource(folder, self.manifest)
        self._order = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
        self.batch_size, self.seed = batch_size, seed
        self._scaling = (settings.latent_scale, settings.latent_shift)
        self._prefetch = prefetch
        # Each record costs more interpreter time than waiting, so more threads than a few only get in each other's way.
        self._threads = max(1, min(4, (os.cpu_count() or 1) // 2, len(self._rows)))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="latents")
        self._pending: dict[int, list[Future]] = {}

    def __len__(self) -> int:
        """Records in one epoch."""
        return self.manifest.records

    def positions(self, step: int) -> list[int]:
        """The global example positions of this process's rows at `step`."""
        return (step * self.batch_size + self._rows).tolist()

    def batch(self, step: int) -> tuple[Float32[np.ndarray, "B h w C"], Int32[np.ndarray, "B"]]:
        """Latents, already multiplied by the scale, and labels; a pure function of the step."""
        ahead = range(step, step + 1 + self._prefetch)
        for stale in self._pending.keys() - set(ahead):
            for future in self._pending.pop(stale):
                future.cancel()
        for each in ahead:
            if each not in self._pending:
                self._pending[each] = self._submit(each)
        parts = [future.result() for future in self._pending.pop(step)]
        return np.concatenate([latents for latents, _ in parts]), np.concatenate([labels for _, labels in parts])

    def close(self) -> None:
        """Stop the background threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, step: int) -> list[Future]:
        rows = self.positions(step)
        chunk = -(-len(rows) // self._threads)
        chunks = [rows[start : start + chunk] for start in range(0, len(rows), chunk)]
        return [self._pool.submit(latent_batch, self._order, part, self.seed, *self._scaling) for part in chunks]
