"""Write a study as Kubernetes objects (JobSet and Kueue): one set of pods per slice or GPU machine, each working through the cells.

The study's folder lies on a volume that every pod mounts, so that a slice that is taken back costs the steps since its last checkpoint.
Standard output gets the YAML: `dit manifest paper ... > paper.yaml`, then `kubectl apply -f paper.yaml`. See docs/clusters.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dit.errors import UserError

MAX_SOURCE = 500_000
"""Bytes of a study's file: a ConfigMap holds a mebibyte in all."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    from sweeps import arguments

    parser.add_argument("study", help="a study's name, or the path of a Python file with runs()")
    parser.add_argument(
        "--hardware", required=True, metavar="NAME", help="one slice or machine, such as v5e-16 or h200x8"
    )
    parser.add_argument("--image", required=True, help="a container image in which `dit` is installed")
    parser.add_argument("--claim", required=True, help="a PersistentVolumeClaim (ReadWriteMany) for the study's folder")
    parser.add_argument("--mount", default="/study", help="where it is mounted (default: /study)")
    parser.add_argument("--out", type=Path, help="the study's folder on it (default: /study/<study>)")
    parser.add_argument("--slices", type=int, default=1, help="slices or machines that may work at once (default: 1)")
    parser.add_argument("--namespace", default="default", help="Kubernetes namespace (default: default)")
    parser.add_argument("--queue", default="", help="an existing LocalQueue of Kueue's (default: one is written)")
    parser.add_argument("--spot", action="store_true", help="on nodes that may be taken back")
    arguments.declare(parser)


def run(args: argparse.Namespace) -> None:
    """Print the YAML."""
    import sys

    from sweeps.arguments import CADENCE, HARDWARE, PATHS, given
    from sweeps.engines.needs import slice_of
    from sweeps.manifest import Order, manifest, to_yaml
    from sweeps.study import declared

    study = declared(args.study)
    given(args)  # refuses what `dit sweep` would
    source = ""
    if Path(args.study).is_file():
        source = Path(args.study).read_text(encoding="utf8")
        if len(source.encode()) > MAX_SOURCE:
            raise UserError(f"{args.study} is larger than {MAX_SOURCE} bytes: put it into the image and give its name")
    options: list[str] = []
    for name in ("wandb", *CADENCE, *HARDWARE, *PATHS):
        if getattr(args, name) is not None:
            options += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    order = Order(
        study.name,
        source,
        slice_of(args.hardware),
        args.image,
        args.slices,
        args.claim,
        args.mount,
        args.out or Path(args.mount) / study.name,
        args.namespace,
        options,
        args.queue,
        args.spot,
    )
    print(to_yaml(manifest(order), ["dit", *sys.argv[1:]]), end="")
