"""Make, or declare, the statistics that samples are compared with, and hash them.

    dit reference imagenet/val256 --out imagenet256.npz
    dit reference mnist --extractor mnist --out mnist.npz
    dit reference latents-256 --vae sd-vae-ft-mse --out decoded.npz
    dit reference fid_stats.npz --made-with-resize tf1-bilinear-299 --out declared.npz

SOURCE is an .npz of images (arr_0, uint8 NHWC), a folder of images, a data set by name, or with --vae a folder of latents (of
`dit encode`), which are decoded: each image's posterior mean, not its mirror. The file keeps means and covariances of
pooled and spatial features over all images, pooled features of the first 10,000 (for precision, recall and KID), and what made them:
`dit evaluate` refuses statistics of another extractor, other weights or another resize. A bare mu/sigma file does not say what made
it; --made-with-resize says so for it (pytorch-fid's own resize is not TensorFlow 1's).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dit.errors import UserError
from dit.hosts import distributed
from dit.score.features import Extractor, extractor_names, make_extractor

if TYPE_CHECKING:
    from dit.data.image_sets import ImageSet


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help=".npz with arr_0, folder of images, data set by name, folder of latents, or bare mu/sigma file to declare",
    )
    add("--out", type=Path, required=True, help="the .npz to write")
    add(
        "--extractor",
        choices=extractor_names(),
        default="inception",
        help="what makes features of images (default: inception)",
    )
    add("--weights", help="Inception weights: .pth, .safetensors or .pb; random:SEED for a demonstration")
    add("--vae", type=Path, metavar="DIR", help="autoencoder that decodes SOURCE, a folder of latents")
    add(
        "--made-with-resize",
        metavar="RESIZE",
        help="declare a bare mu/sigma file as made with this resize, such as tf1-bilinear-299",
    )
    add("--batch-size", type=int, default=64, help="images per dispatch (default: 64)")
    add("--json", action="store_true", help="print what was made as JSON")
    distributed.declare(parser)


def run(args: argparse.Namespace) -> None:
    """Make or declare the statistics, and print what they are."""
    from tabulate import tabulate

    from dit.cli.progress import ImageProgress
    from dit.hosts.processes import SHARES_S, Processes
    from dit.score import inception, reference

    if args.out.suffix != ".npz":
        raise UserError(f"--out {args.out}: expected a name ending in .npz")
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: expected at least 1")
    partial = args.out.with_name(f"{args.out.name}.partial")
    if args.made_with_resize is not None:
        if args.vae is not None:
            raise UserError("--made-with-resize declares a file of statistics, --vae decodes latents: give one of them")
        made = reference.declare(Path(args.source), inception.NAME, args.made_with_resize)
    else:
        distributed.share(args.distributed)
        processes = Processes(SHARES_S)

        def ready() -> tuple[Extractor, ImageSet]:
            extractor = make_extractor(args.extractor, args.weights, args.batch_size)
            return extractor, _images(args, extractor.channels)

        extractor, images = processes.together("ready", ready)
        if images.said and processes.leads:
            print(images.said, file=sys.stderr)
        with ImageProgress("reference", processes.leads) as progress:
            made = reference.make(extractor, images, args.batch_size, partial, progress)
        if not processes.leads:
            return
    reference.save(args.out, made)
    shutil.rmtree(partial, ignore_errors=True)
    facts = {**made.made_by, "num_references": len(made.features), "sha256": made.sha256, "path": str(args.out)}
    print(
        json.dumps([facts], indent=1)
        if args.json
        else tabulate(list(facts.items()), tablefmt="plain", disable_numparse=True)
    )


def _images(args: argparse.Namespace, channels: int) -> ImageSet:
    if args.vae is None:
        from dit.data.image_sets import open_images

        return open_images(args.source, channels)
    from dit.data.decoded_latents import open_decoded

    return open_decoded(args.source, args.vae)
