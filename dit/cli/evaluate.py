"""FID, sFID, Inception Score, precision and recall of samples, as the ADM suite takes them.

    dit evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz
    dit evaluate samples.npz --reference mnist --extractor mnist --metrics fid precision recall
    dit evaluate runs/demo/runs/RUN --reference digits --extractor digits --num-samples 512 --sampling-steps 25

SAMPLES is an .npz of images (arr_0, uint8 NHWC), a folder of them, or a checkpoint (a run's folder, one of `dit import`, an official
file), from which they are drawn first, by default 50,000 in 250 DDPM steps without guidance, into an .npz that is kept. The
reference is a file of `dit reference`, an ADM batch, or images to make statistics of. One row with the whole protocol is written
beside the samples (--out); an evaluation that was killed goes on where it was. Scores compare only where their protocol is the
same: extractor, weights, resize, reference, number of samples, and how they were drawn, which is taken from the samples' `protocol`
entry or from the options below, and is null where nobody says. Several processes that all start this command with --distributed share
drawing and features, in one folder that all of them see.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dit.design.config import Precision
from dit.design.metrics import ADM, metric, metrics
from dit.design.parts import reference_to
from dit.errors import UserError
from dit.hosts import distributed
from dit.score.features import Extractor, NetworkExtractor, column, extractor_names, make_extractor
from dit.score.metrics.bootstrap import LEAST_RESAMPLES

if TYPE_CHECKING:
    from dit.data.image_sets import ImageSet
    from dit.hosts.processes import Processes
    from dit.score.reference import Reference
    from dit.train.restore import Loaded

DRAWN: dict[str, tuple[Any, str]] = {
    "sampler": (str, "ddpm, ddim, or another program's"),
    "sampling_steps": (int, "steps of the sampler"),
    "cfg_scale": (float, "scale of classifier-free guidance; 1 is none"),
    "cfg_channels": (int, "how many channels guidance moves"),
    "ema": (bool, "averaged weights, or the last ones"),
    "decoder": (str, "autoencoder that decoded them, or none"),
    "sample_seed": (int, "seed of noise and labels"),
    "precision": (str, "number format of the model's products"),
}
"""How samples were drawn: the fields of the protocol that an option may give, with their types and what they are."""
YOUNGER = ("sampler_options", "sampler_source", "cfg_interval")
"""What samples may say besides, where it is set."""
FORMAT = "model_precision"
"""Name of `precision` in a row, where `precision` is a score."""
CHOICES = {"precision": get_args(Precision)}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    known = [one.name for one in metrics()]
    add = parser.add_argument
    add("samples", metavar="SAMPLES", help=".npz with arr_0 (uint8 NHWC), a folder of images, or a checkpoint")
    add("--reference", required=True, help="file of `dit reference`, ADM batch, images, or data set by name")
    add(
        "--extractor",
        default="inception",
        help=f"what makes features of images: {', '.join(extractor_names())} or one's own (default: inception)",
    )
    add("--weights", help="Inception weights: .pth, .safetensors or .pb; random:SEED for a demonstration")
    add(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        help=f"some of {', '.join(known)} (default: {', '.join(ADM)})",
    )
    add("--num-samples", type=int, help="take only the first so many samples")
    add("--half", action="store_true", help="precision and recall in float16, as the original suite rounds")
    add(
        "--bootstrap",
        type=int,
        default=0,
        metavar="N",
        help="95 %% intervals of fid, precision and recall from N resamples",
    )
    add("--seed", type=int, default=0, help="of resamples, and of the sub-samples of kid and fid_infinity (default: 0)")
    add("--batch-size", type=int, default=64, help="images per dispatch (default: 64)")
    add("--out", type=Path, help="the row (default: SAMPLES.<protocol>.json)")
    add("--json", action="store_true", help="print the row as JSON")
    add("--vae", type=Path, help="autoencoder for the samples of a checkpoint on latents")
    add("--key", help="which part of a checkpoint file to take (default: its averaged weights)")
    drawn = parser.add_argument_group("how the samples were drawn, or are to be drawn from a checkpoint")
    for name, (kind, what) in DRAWN.items():
        option = f"--{name.replace('_', '-')}"
        if kind is bool:
            drawn.add_argument(option, action=argparse.BooleanOptionalAction, help=what)
        else:
            drawn.add_argument(option, type=kind, choices=CHOICES.get(name), help=what)
    distributed.declare(parser)


def run(args: argparse.Namespace) -> None:
    """Score the samples, print the table and write the row."""
    from dit.cli.progress import ImageProgress
    from dit.hosts.processes import SHARES_S, Processes
    from dit.score import reference
    from dit.score.evaluation import gather
    from dit.score.scores import score
    from dit.store.study import write_json

    distributed.share(args.distributed)
    processes = Processes(SHARES_S)
    say = _say if processes.leads else _quiet
    extractor, checkpoint = processes.together("ready", lambda: _ready(args))
    path = Path(args.samples) if Path(args.samples).name else Path(args.samples).resolve()
    if checkpoint is not None:
        path = processes.together("samples drawn", lambda: _draw(args, checkpoint, processes))
        if checkpoint.note:
            say(checkpoint.note)
        say(f"samples are in {path}")
    images, count = processes.together("samples open", lambda: _images(args, path, extractor))
    if images.said:
        say(images.said)
    if extractor.metric_suffix.startswith("random"):
        say("random weights: these numbers demonstrate the program, they score nothing")

    partial = _partial(args.out or path)
    with ImageProgress("reference", processes.leads) as progress:
        real = reference.load(args.reference, extractor, args.batch_size, partial / "reference", progress, say)
    chosen = tuple(args.metrics or ADM)
    keep = count if args.bootstrap or any(metric(name).keeps_features for name in chosen) else 0
    with ImageProgress("samples", processes.leads) as progress:
        statistics = gather(extractor, images, args.batch_size, count, keep, partial / "samples", progress)
    scores = score(statistics, real, chosen, args.half, args.bootstrap, args.seed, required=args.metrics is not None)
    for name, found in scores.items():
        if found.reason:
            say(f"no {name}: {found.reason}")
    row = _row(args, extractor, images, count, real, scores, say)
    processes.meet("scores taken")
    if not processes.leads:
        return
    out = args.out or path.with_name(f"{path.stem if path.is_file() else path.name}.{row['protocol']}.json")
    write_json(out, row)
    shutil.rmtree(partial, ignore_errors=True)
    say(f"wrote {out}")
    if args.json:
        print(json.dumps([row], indent=1))
    else:
        print(_table(extractor, scores, row))


def _ready(args: argparse.Namespace) -> tuple[Extractor, Loaded | None]:
    """The extractor, and the checkpoint if one is to be drawn from."""
    from dit.train.restore import Declared, is_checkpoint, open_checkpoint
    from sweeps.study import run_kept_of

    _check(args)
    if is_checkpoint(Path(args.samples)):
        run_kept_of(Path(args.samples))
    args.metrics = args.metrics and [metric(name).name for name in args.metrics]
    extractor = make_extractor(args.extractor, args.weights, args.batch_size)
    if not is_checkpoint(Path(args.samples)):
        return extractor, None
    for option, given in (("--no-ema", args.ema is False), ("--decoder", args.decoder is not None)):
        if given:
            raise UserError(
                f"{option} with a checkpoint: its averaged weights are drawn from, and decoded by --vae; leave it out"
            )
    return extractor, open_checkpoint(Path(args.samples), declared=Declared(key=args.key))


def _images(args: argparse.Namespace, path: Path, extractor: Extractor) -> tuple[ImageSet, int]:
    """The samples and how many of them to take."""
    from dit.data.image_sets import open_images

    images = open_images(str(path), extractor.channels)
    count = len(images) if args.num_samples is None else args.num_samples
    if not 2 <= count <= len(images):
        raise UserError(
            f"{count} sample(s) of the {len(images)} in {path}: expected at least 2 and no more than there are"
        )
    for name in DRAWN:
        given, said = getattr(args, name), images.protocol.get(name)
        if given is not None and said is not None and given != said:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{path} says that its {name} is {said}, {option} says {given}: leave the option out")
    if isinstance(extractor, NetworkExtractor):
        extractor.check(next(images.batches(1, 0, 1)))  # before the reference, which may take hours
    return images, count


def _check(args: argparse.Namespace) -> None:
    """Refuse at once what would be refused after the work."""
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: expected at least 1")
    if args.bootstrap and args.bootstrap < LEAST_RESAMPLES:
        raise UserError(
            f"--bootstrap {args.bootstrap}: expected 0, or at least {LEAST_RESAMPLES} resamples, better 200"
        )
    if args.out is not None and args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder: expected a file for the row")


def _partial(beside: Path) -> Path:
    return beside.with_name(f"{beside.name}.partial")


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _quiet(message: str) -> None:
    """Of several processes the first one speaks."""


def _draw(args: argparse.Namespace, loaded: Loaded, processes: Processes) -> Path:
    """Samples of the checkpoint, drawn beside the row (or here) and kept; what is there already is used again.

    Each process draws its part of the shards, and whichever comes last puts them together.
    """
    from dit.cli.progress import ImageProgress
    from dit.data.decoding import open_decoder
    from dit.design.config import Evaluation
    from dit.score.sample_images import SampleRun, check, draw

    given = {
        name: getattr(args, name)
        for name in DRAWN
        if name not in ("decoder", "ema") and getattr(args, name) is not None
    }
    count = 50_000 if args.num_samples is None else args.num_samples
    drawn = Evaluation(step=1, features="none", num_samples=count, **given)
    step = "" if loaded.step is None else f"-{loaded.step:08d}"
    out = (args.out.parent if args.out else Path()) / f"{Path(args.samples).name}{step}-{drawn.key}.npz"
    share = (args.batch_size, SampleRun.shard_size, processes.index, processes.count)
    job = SampleRun(out, count, drawn, None, *share)
    check(job, loaded, args.vae is not None)
    decoder = open_decoder(args.vae, loaded.data) if args.vae is not None else None
    with ImageProgress("draw", processes.leads) as progress:
        draw(job, loaded, decoder, progress)
    return out


def _row(
    args: argparse.Namespace,
    extractor: Extractor,
    images: ImageSet,
    count: int,
    real: Reference,
    scores: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The result with everything it depends on; `protocol` hashes all of that but the samples themselves."""
    from dit.design.config import digest

    unknown = sorted(set(images.protocol) - {*DRAWN, *YOUNGER})
    if unknown:
        say(f"left out of the row: {', '.join(unknown)} in the samples' protocol (known: {', '.join(DRAWN)})")
    given = {name: getattr(args, name) for name in DRAWN}
    drawn = {name: images.protocol.get(name) if value is None else value for name, value in given.items()}
    drawn |= {name: images.protocol[name] for name in YOUNGER if name in images.protocol}
    precision = drawn.pop("precision")
    if precision not in (None, "float32"):  # younger than the first scores, which keep their protocol's hash
        drawn[FORMAT] = precision
    protocol = {
        "extractor": extractor.name,
        "extractor_sha256": extractor.weights_sha256,
        "resize": extractor.resize,
        "reference": real.made_by["source"],
        "reference_sha256": real.sha256,
        "num_references": len(real.features),
        "num_samples": count,
        "precision_recall_dtype": "float16" if args.half else "float32",
        **drawn,
    }
    named = {column(extractor, name): found for name, found in scores.items()}
    return {
        "schema_version": 1,
        **{name: found.value for name, found in named.items()},
        "intervals": {name: [found.low, found.high] for name, found in named.items() if found.low is not None},
        "spreads": {name: found.spread for name, found in named.items() if found.spread is not None},
        **protocol,
        **({"metrics": own} if (own := [reference_to(metric(name)) for name in scores if metric(name).source]) else {}),
        "samples": images.source,
        "samples_sha256": images.sha256,
        "protocol": digest(protocol),
        "status": "done",
    }


def _table(extractor: Extractor, scores: dict[str, Any], row: dict[str, Any]) -> str:
    from tabulate import tabulate

    lines = []
    for name, found in scores.items():
        interval = "" if found.low is None else f"{found.low:.4f} to {found.high:.4f}"
        spread = "" if found.spread is None else f"± {found.spread:.4f}"
        lines.append(
            (column(extractor, name), "-" if found.value is None else f"{found.value:.4f}", interval or spread)
        )
    heads = ("metric", f"{row['num_samples']:,} samples", "interval or spread")
    drawn = (
        ", ".join(
            f"{name} {row[name]}" for name in (*DRAWN, FORMAT) if name != "precision" and row.get(name) is not None
        )
        or "not said"
    )
    made = f"{row['extractor']} ({row['extractor_sha256'][:12]}, {row['resize']})"
    facts = [
        f"extractor  {made}",
        f"reference  {row['reference']} ({row['reference_sha256'][:12]})",
        f"drawn      {drawn}",
        f"protocol   {row['protocol']}",
    ]
    return "\n".join([tabulate(lines, heads, disable_numparse=True, colalign=("left", "right", "left")), "", *facts])
