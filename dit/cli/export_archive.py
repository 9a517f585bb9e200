"""Write a study's rows, logs and first samples as one file, which every reading verb takes in place of the folder.

    dit export archive runs/demo --out demo.tar.xz

Weights, figures and reports stay behind. The same rows give the same file.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the study's folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a name that ends in .tar.xz")


def run(args: argparse.Namespace) -> None:
    """Write the archive and print its name and size."""
    from dit.store.archives import pack

    out = pack(args.folder, args.out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
