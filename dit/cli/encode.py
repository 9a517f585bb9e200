"""Encode a folder of images into latents for training: crop, autoencoder, sharded records with a manifest.

  dit encode --images imagenet/train --vae sd-vae-ft-mse --image-size 256 --out latents-256

The images lie in one folder per class, or any folder with --labels FILE (CSV or JSON of path and label). The autoencoder is a diffusers
folder on this machine, or a .safetensors or .bin file with its config.json; nothing is downloaded. Run again to resume: finished
shards are kept. On several machines with one --out folder, each takes its part of the shards: by --distributed, which takes its number
from Slurm's job step, a TPU slice or DIT_* variables, by --process-index, or by JAX's own numbers. The last to end writes the manifest.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

from dit.errors import UserError
from dit.hosts import distributed


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of images, one subfolder per class")
    add("--vae", type=Path, required=True, help="autoencoder: diffusers folder or weights file, on this machine")
    add("--image-size", type=int, required=True, help="side of the square crop in pixels (256, 512)")
    add("--out", type=Path, required=True, help="folder for the shards; run again with the same one to resume")
    add("--labels", type=Path, help="CSV or JSON file of image path and label, instead of class folders")
    add("--process-index", type=int, help="which part of the shards this process makes (default: JAX's process number)")
    add("--process-count", type=int, help="in how many parts they are made (default: JAX's process count)")
    add("--batch-size", type=int, help="images per device at a time (default: 16, or 4 on CPU)")
    add("--shard-size", type=int, default=4096, help="images per shard (default: %(default)s)")
    add("--max-broken", type=float, default=0.01, help="share of broken images that is an error (default: %(default)s)")
    add("--precision", choices=("float32", "fast"), default="float32", help="matrix products; fast: TF32 or bfloat16")
    distributed.declare(parser)


def run(args: argparse.Namespace) -> int:
    """Encode what is missing, with progress; exit code of the verb."""
    if (args.process_index is None) != (args.process_count is None):
        raise UserError("--process-index and --process-count go together; give both or neither")
    options = vars(args)
    if options.pop("distributed"):
        if args.process_index is not None:
            raise UserError("--distributed numbers the processes itself: leave --process-index and --process-count out")
        options["process_index"], options["process_count"] = distributed.part(os.environ)
    # JAX takes seconds to import; --help and wrong arguments should not.
    import jax

    from dit.data.encode import EncodeRun, encode

    if args.process_index is None:
        args.process_index, args.process_count = jax.process_index(), jax.process_count()
    with warnings.catch_warnings(), _Display() as display:
        # Pillow warns about odd EXIF data and large images, thousands of times in ImageNet; damage is counted by us.
        warnings.filterwarnings("ignore", module="PIL")
        progress, manifest = encode(EncodeRun(**options), display.show)
    if progress.said:
        print(f"{args.images}: {progress.said}")
    if manifest is None:
        print(f"{args.out}: this process's {progress.done:,} images are done; others are still to be encoded")
        return 0
    size = sum(shard.num_bytes for shard in manifest.shards)
    print(f"{args.out}: {manifest.records:,} images in {len(manifest.shards)} shards, {size / 1e9:.3g} GB")
    print(f"{manifest.num_classes} classes, {len(manifest.broken)} broken images left out")
    for path, reason in manifest.broken[:20]:
        print(f"  {path}: {reason}")
    if len(manifest.broken) > 20:
        print(f"  ... and {len(manifest.broken) - 20} more, all listed in {args.out}/manifest.json")
    if progress.wall_s:
        print(f"{progress.images_per_s:.1f} images/s over {progress.wall_s:.0f} s")
    return 0


class _Display:
    """A bar on a terminal, a line every ten seconds elsewhere; to standard error."""

    interval_s = 10.0

    def __init__(self) -> None:
        self._bar = self._task = None
        self._last = time.monotonic()

    def __enter__(self) -> _Display:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("encode"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress) -> None:
        """Called after every batch with a `dit.data.encode.Progress`."""
        text = f"{progress.images_per_s:.1f} images/s, {progress.broken} broken"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=progress.total, completed=progress.done, description=text)
        elif time.monotonic() - self._last >= self.interval_s or progress.done in (progress.resumed, progress.total):
            self._last = time.monotonic()
            print(f"encode: {progress.done:,} of {progress.total:,} images, {text}", file=sys.stderr, flush=True)
