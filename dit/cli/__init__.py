"""The `dit` command: one file per verb, imported only when that verb is asked for.

The entry point ties the rooms together (`dit`, `experiments`, `sweeps`, `analysis`); nothing imports it. Results go to standard
output, progress and messages to standard error. Exit codes: 0 done, 1 a check did not pass, 2 bad input (one line), 3 some cells failed,
75 stopped with the state saved, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from typing import NoReturn

from dit.errors import UserError
from dit.hosts.terminal import screened

VERBS = {
    "flops": "count multiply-adds and parameters of every cell, beside the published values",
    "plan": "list a study's cells with parameters, Gflops, tokens and training compute, before anything runs",
    "sweep": "run what is missing of a study, and resume what was interrupted",
    "worker": "work on a study's cells, claiming one after another; what every engine launches",
    "manifest": "write a study as Kubernetes objects, for JobSet and Kueue",
    "status": "show where a study stands, live if asked",
    "verify": "name every damaged, missing or foreign file of a study, and mend what is safe",
    "retry": "take failed and cancelled cells up again",
    "cancel": "stop cells, saved, until they are retried",
    "doctor": "check devices, storage, wandb, disk and versions before they cost a run",
    "results": "query the results table of a study, or of the paper",
    "sql": "ask a study in SQL",
    "compare": "hold a study's scores against the published ones, or against another study's",
    "expect": "name the loss and FID that public logs and tables lead one to expect",
    "fit": "fit scaling laws to a study, or to the paper: intervals, forward validation, frontier",
    "forecast": "freeze a dated forecast before a cell is trained, and score it afterwards",
    "advise": "name the cells that cannot reach the frontier, and the next run that narrows a forecast most",
    "figures": "draw the figures of a study, or of the published numbers; verify that they are up to date",
    "report": "write a study as one self-contained HTML page",
    "import-wandb": "read runs logged in Weights & Biases into a study's folder",
    "import-log": "read the text logs of DiT's trainer and its descendants into a study's folder",
    "export wandb": "replay a study into Weights & Biases",
    "export archive": "write a study's rows as one file that every reading verb takes",
    "import": "read official DiT weights into a checkpoint",
    "export": "write a checkpoint under the official names",
    "sample": "draw images from a checkpoint, or one grid from a whole study",
    "encode": "encode a folder of images into latents for training, with any Stable Diffusion autoencoder",
    "evaluate": "score saved samples: FID, sFID, Inception Score, precision, recall, KID",
    "reference": "make the statistics that samples are scored against",
}


MODULES = {
    "import-wandb": "import_wandb",
    "import-log": "import_log",
    "export wandb": "export_wandb",
    "export archive": "export_archive",
    "import": "import_weights",
    "export": "export_weights",
}
"""Verbs that are no names of Python modules."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count signals."""


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
    """Run one verb and return its exit code. What it prints steers no terminal, whatever is in the files that it reads."""
    with screened():
        return _main(sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0 if argv else 2
    if argv[0] == "--version":
        from dit import __version__

        print(f"dit {__version__}")
        return 0
    words = 2 if " ".join(argv[:2]) in VERBS else 1
    verb, rest = " ".join(argv[:words]), argv[words:]
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
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno is None:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        helps = ": raise the limit of open files (ulimit -n)" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
        print(f"dit {verb}: {place}{os.strerror(error.errno)}{helps}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
