"""The `dit` command: one file per verb, imported only when that verb is asked for.

The entry point ties the rooms together (`dit`, `experiments`, `sweeps`, `analysis`); nothing imports it. Results go to standard
output, progress and messages to standard error. Exit codes: 0 done, 2 bad input (one line), 3 some cells failed, 75 stopped with the
state saved.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import NoReturn

from dit.errors import UserError

VERBS = {
    "flops": "count multiply-adds and parameters of every cell, beside the published values",
    "plan": "list a study's cells with parameters, Gflops, tokens and training compute, before anything runs",
    "sweep": "run what is missing of a study, and resume what was interrupted",
    "worker": "work on a study's cells, claiming one after another; what every engine launches",
    "status": "show where a study stands, live if asked",
    "retry": "take failed and cancelled cells up again",
    "cancel": "stop cells, saved, until they are retried",
    "doctor": "check devices, storage, wandb, disk and versions before they cost a run",
    "results": "query the results table of a study, or of the paper",
    "figures": "draw the paper's figures from a study, or from the published numbers",
    "import": "read official DiT weights into a checkpoint",
    "export": "write a checkpoint under the official names",
    "sample": "draw images from a checkpoint, or one grid from a whole study",
    "encode": "encode a folder of images into latents for training, with any Stable Diffusion autoencoder",
    "evaluate": "score saved samples: FID, sFID, Inception Score, precision, recall, KID",
    "reference": "make the statistics that samples are scored against",
}


MODULES = {"import": "import_weights", "export": "export_weights"}
"""Verbs that are no names of Python modules."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    return (
        "usage: dit VERB [options]\n\n"
        "Design-space ablations and scaling-law studies of diffusion transformers.\n\n"
        f"{verbs}\n\n"
        "`dit VERB --help` tells each verb's options. Gflops count one multiply-add as one flop, as the paper does.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0 if argv else 2
    if argv[0] == "--version":
        from dit import __version__

        print(f"dit {__version__}")
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        print(f"dit: unknown verb '{verb}'; expected one of {', '.join(VERBS)} (see dit --help)", file=sys.stderr)
        return 2
    module = importlib.import_module(f"dit.cli.{MODULES.get(verb, verb)}")
    parser = _Parser(
        prog=f"dit {verb}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.configure(parser)
    try:
        return module.run(parser.parse_args(rest)) or 0
    except UserError as error:
        print(f"dit {verb}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0
