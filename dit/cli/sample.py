"""Draw images from a checkpoint, or one image from every cell of a study.

    dit sample dit-xl-2-256 --vae sd-vae-ft-ema --labels 207,360,387 --cfg-scale 4 --out eight --png-grid
    dit sample dit-xl-2-256 --vae sd-vae-ft-mse --num 50000 --out samples.npz
    dit sample --grid runs/grid --vae sd-vae-ft-mse --label 207 --seed 0 --out fig7.png

CHECKPOINT is a run's folder, one of `dit import`, or an official file. The averaged weights are used. An image follows from seed and number
alone. FILE.npz is the ADM suite's (arr_0: uint8 NHWC); FILE.json and entries in the file say how it was made, and `dit evaluate`
reads them. Run the same command again to resume. On several machines that see one --out, each draws its part: start the same command in
all with --distributed, or tell each its part (--process-index), which needs no connection between them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dit.design.parts import names
from dit.design.samplers import Sampler
from dit.errors import UserError
from dit.hosts import distributed
from dit.store.files import whole


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add = parser.add_argument
    add("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="run folder, imported folder, or official file")
    add("--out", type=Path, required=True, help="FILE.npz, or a folder for samples.npz; with --grid a .png")
    add("--labels", default="random", help="class numbers such as 207,360, taken in turn, or random (default: random)")
    add("--num", type=int, help="how many images (default: one per label, or 16)")
    add("--steps", type=int, default=250, help="sampling steps (default: 250)")
    add("--cfg-scale", type=float, default=1.0, help="guidance; 1 is none (default: 1)")
    add(
        "--cfg-channels",
        default="3",
        help="channels that guidance moves: 3 as in the paper's code, or all (default: 3)",
    )
    add(
        "--sampler",
        default="ddpm",
        help=f"one that fits what the model was trained on: {', '.join(names(Sampler))} or one's own (default: ddpm)",
    )
    add(
        "--sampler-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the sampler, such as churn=40; may be given again",
    )
    add(
        "--cfg-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="guide only where LOW < σ <= HIGH (of a flow: t)",
    )
    add(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the model's products; scores of the two are not compared (default: float32)",
    )
    add("--seed", type=int, default=0, help="of all noise and of random labels (default: 0)")
    add("--vae", type=Path, help="autoencoder that decodes latents: diffusers folder or weights file")
    add("--key", help="which part of a weights file to take (default: its averaged weights)")
    add("--step", type=int, help="which of a run's checkpoints (default: the newest)")
    add("--batch-size", type=int, default=64, help="images at a time on all devices (default: 64)")
    add(
        "--shard-size",
        type=int,
        default=1024,
        help="images per file while drawing: what a kill may cost (default: 1024)",
    )
    add("--png-grid", action="store_true", help="also write the first images as one PNG beside the samples")
    add("--process-index", type=int, help="which part of the shards this process draws (default: JAX's process number)")
    add("--process-count", type=int, help="in how many parts they are drawn (default: JAX's process count)")
    distributed.declare(parser)
    add("--grid", type=Path, metavar="STUDY_DIR", help="instead: one image from every cell of this study, as one PNG")
    add("--label", type=int, default=0, help="with --grid: the class number (default: 0)")


def run(args: argparse.Namespace) -> None:
    """Draw; where the images are on standard output."""
    from sweeps.study import run_kept_of

    if (args.checkpoint is None) == (args.grid is None):
        raise UserError("expected one of CHECKPOINT and --grid STUDY_DIR")
    if (args.process_index is None) != (args.process_count is None):
        raise UserError("--process-index and --process-count go together; give both or neither")
    if args.distributed and (args.grid is not None or args.process_index is not None):
        raise UserError(
            "--distributed divides the images of one checkpoint by itself: leave --grid and --process-index out"
        )
    run_kept_of(args.grid or Path(args.checkpoint))
    labels = _labels(args.labels)
    drawn = _drawn(args)
    if args.grid is not None:
        _grid(args, drawn)
    else:
        _samples(args, drawn, labels)


def _samples(args: argparse.Namespace, drawn: Any, labels: tuple[int, ...] | None) -> None:
    from dit.cli.progress import ImageProgress
    from dit.data.decoding import open_decoder
    from dit.hosts.processes import SHARES_S, Processes
    from dit.score.sample_images import SampleRun, check, draw, grid_of
    from dit.train.restore import Declared, open_checkpoint

    distributed.share(args.distributed)
    processes = Processes(SHARES_S)
    if args.process_index is None:
        args.process_index, args.process_count = processes.index, processes.count
    num = args.num if args.num is not None else len(labels or range(16))
    parts = (args.batch_size, args.shard_size, args.process_index, args.process_count)
    job = SampleRun(args.out, num, drawn, labels, *parts)

    def ready() -> tuple[Any, Any]:
        loaded = open_checkpoint(args.checkpoint, args.step, Declared(key=args.key))
        check(job, loaded, args.vae is not None)
        return loaded, open_decoder(args.vae, loaded.data) if args.vae is not None else None

    loaded, decoder = processes.together("ready", ready)
    with ImageProgress("sample", processes.leads) as progress:
        processes.together("samples drawn", lambda: draw(job, loaded, decoder, progress))
    if not processes.leads:
        return
    if loaded.note:
        print(loaded.note, file=sys.stderr)
    if not job.npz.exists():
        print(f"{job.npz}: this process's part is done; others are still to be drawn")
        return
    step = "" if loaded.step is None else f" at step {loaded.step:,}"
    print(f"{job.npz}: {job.num:,} images of {loaded.source}{step}")
    if args.png_grid:
        path = job.npz.with_suffix(".png")
        _write_png(_picture(grid_of(job)), path)
        print(path)


def _grid(args: argparse.Namespace, drawn: Any) -> None:
    from dit.cli.progress import ImageProgress
    from dit.data.decoding import open_decoder
    from dit.score.sample_grid import cells_of, compose, draw_cells

    if args.out.suffix != ".png":
        raise UserError(f"--out {args.out}: expected a name ending in .png with --grid")
    cells = cells_of(args.grid)
    data = {run.data for run in cells.values()}
    if len(data) > 1:
        raise UserError(
            f"the study in {args.grid} has {len(data)} data sets: expected one, so that all cells start from one noise"
        )
    (one,) = data
    if one.is_latent != (args.vae is not None):
        raise UserError(
            "the study draws latents: give --vae" if one.is_latent else "the study draws pixels: leave --vae out"
        )
    decoder = open_decoder(args.vae, one) if args.vae is not None else None
    with ImageProgress("grid") as progress:
        grid = draw_cells(args.grid, cells, args.label, drawn, decoder, progress)
    missing = [key for key in grid.cells if key not in grid.images]
    if missing:
        print(f"{len(missing)} of {len(grid.cells)} cells have no checkpoint yet and stay empty", file=sys.stderr)
    if len(set(grid.steps.values())) > 1:
        print(
            f"cells are at different steps: {min(grid.steps.values()):,} to {max(grid.steps.values()):,}",
            file=sys.stderr,
        )
    _write_png(compose(grid), args.out)
    print(f"{args.out}: {len(grid.images)} cells, label {args.label}, seed {args.seed}")


def _labels(text: str) -> tuple[int, ...] | None:
    if text == "random":
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--labels {text}: expected class numbers separated by commas, or random") from None


def _drawn(args: argparse.Namespace) -> Any:
    """The sampling options as the declaration that a study would make."""
    from dit.design.config import Evaluation

    if args.cfg_channels != "all" and not (args.cfg_channels.isdigit() and int(args.cfg_channels)):
        raise UserError(f"--cfg-channels {args.cfg_channels}: expected 3, all, or another number of channels")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: expected 0 to {2**32 - 1}")
    channels = None if args.cfg_channels == "all" else int(args.cfg_channels)
    return Evaluation(
        step=1,
        features="none",
        num_samples=1,
        sampling_steps=args.steps,
        sampler=args.sampler,
        sampler_options=tuple(_option(text) for text in args.sampler_option),
        cfg_interval=args.cfg_interval and tuple(args.cfg_interval),
        cfg_scale=args.cfg_scale,
        cfg_channels=channels,
        sample_seed=args.seed,
        precision=args.precision,
    )


def _option(text: str) -> tuple[str, float | str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"--sampler-option {text}: expected NAME=VALUE, such as churn=40")
    try:
        return name, float(value)
    except ValueError:
        return name, value


def _picture(pixels: Any) -> Any:
    from PIL import Image

    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _write_png(picture: Any, path: Path) -> None:
    """Whole or not at all."""
    with whole(path) as beside:
        picture.save(beside, format="PNG")
