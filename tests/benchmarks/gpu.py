"""Training and sampling on one GPU beside PyTorch's `torch.compile` on the same card: `python tests/benchmarks/gpu.py`.

    python tests/benchmarks/gpu.py --models XL/2 --rounds 2
    python tests/benchmarks/gpu.py --models L/2,B/2 --parts train
    python tests/benchmarks/gpu.py --smoke                      # on a CPU, a nano model: that it runs to its end; no time means anything

Training is the whole step (draws, hybrid loss, AdamW, moving average) in bfloat16 with float32 parameters: `dit` through its loop, with
rows and guard; the PyTorch twin under autocast, with fused attention and AdamW. Each takes the best of --batches; one that does not fit
is left out. Sampling is 250 ancestral steps in bfloat16. Contestants take turns, each in a process of its own (JAX keeps most of a card
to itself). Images a second are over --steps steps after as many to warm up; utilisation counts two operations per multiply-add and three
forward passes (one a sampling step) over the card's peak in `dit.train.throughput`. It has not been run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dit.design.config import DATASETS, Evaluation, ModelConfig, RunConfig, model_config
from dit.design.flops import BACKWARD_FACTOR, macs
from dit.train.throughput import peak_flops

sys.path.insert(0, str(Path(__file__).parents[1]))  # for torch_twin

CONTESTANTS = ("dit", "torch.compile")
DATA = DATASETS["imagenet256"]


class Same:
    """One batch, again and again."""

    def __init__(self, batch: int):
        rng = np.random.default_rng(0)
        self._images = rng.standard_normal((batch, DATA.input_size, DATA.input_size, DATA.in_channels), np.float32)
        self._labels = rng.integers(0, DATA.num_classes, batch).astype(np.int32)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        return self._images, self._labels


def ours(part: str, model: ModelConfig, batch: int, args: argparse.Namespace) -> float:
    """Images a second of `dit`."""
    import jax

    from dit.design.config import DiffusionConfig
    from dit.model.compute import Compute
    from dit.model.transformer import applied
    from dit.score.sampling import Sampler
    from dit.train.loop import train
    from dit.train.step import build

    program = build(RunConfig(model, DATA, 4 * args.steps, batch, precision="bfloat16"))
    if part == "train":
        state = train(program, program.init(), Same(batch), args.steps, args.steps, lambda row: None)
        jax.block_until_ready(state)
        start = time.perf_counter()
        jax.block_until_ready(train(program, state, Same(batch), 2 * args.steps, args.steps, lambda row: None))
        return batch * args.steps / (time.perf_counter() - start)
    params = jax.jit(lambda: program.init().ema)()
    sampler = Sampler(applied(model, Compute(), jax.devices()[0].platform), model, DiffusionConfig(), batch)

    def draw(steps: int) -> float:
        start = time.perf_counter()
        drawn = Evaluation(1, "none", batch, sampling_steps=steps, precision="bfloat16")
        assert sum(len(each.images) for each in sampler.draw(params, drawn, 0, batch)) == batch
        return time.perf_counter() - start

    draw(2)
    return batch / draw(args.sampling_steps)


def theirs(part: str, model: ModelConfig, batch: int, args: argparse.Namespace) -> float:
    """Images a second of the PyTorch twin under `torch.compile`."""
    import torch
    from torch_twin import TorchTraining

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    shape = (model.patch_size, True, model.depth, model.hidden_size, model.num_heads)
    training = TorchTraining(*shape, device=device, bfloat16=True)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def timed(call: Any) -> float:
        wait()
        start = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - start

    if part == "train":
        images, labels = (torch.from_numpy(each).to(device) for each in Same(batch).batch(0))
        images, labels = images.permute(0, 3, 1, 2).contiguous(), labels.long()

        def steps() -> None:
            for _ in range(args.steps):
                training.step(images, labels)

        steps()
        return batch * args.steps / timed(steps)
    training.sample(batch, 2)
    return batch / timed(lambda: training.sample(batch, args.sampling_steps))


def device() -> str:
    """The kind of device, as both name it."""
    import jax

    return jax.devices()[0].device_kind


def one(args: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: images a second at each batch, `null` where it does not fit."""
    contestant, part, name = args.one
    rates: dict[int, float | None] = {}
    for batch in args.batches:
        try:
            rates[batch] = (ours if contestant == "dit" else theirs)(part, cell(name, args.ladder), batch, args)
        except Exception as error:  # of two libraries, with two classes for memory that ran out
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
                raise
            rates[batch] = None
    return {"rates": rates, "device": device() if contestant == "dit" else None}


def cell(name: str, ladder: str) -> ModelConfig:
    size, patch_size = name.split("/")
    return model_config("adaln_zero", size, int(patch_size), DATA, ladder)


def ask(contestant: str, part: str, name: str, batches: list[int]) -> dict[str, Any]:
    """`one`, in a process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", contestant, part, name]
    command += ["--batches", ",".join(map(str, batches))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(part: str, name: str, args: argparse.Namespace) -> None:
    """A row per contestant: the best batch of the first round, which the others repeat alone."""
    model, kind = cell(name, args.ladder), "unknown"
    rates: dict[str, list[float]] = {contestant: [] for contestant in CONTESTANTS}
    best = dict.fromkeys(CONTESTANTS, 0)
    for number in range(args.rounds):
        for contestant in CONTESTANTS if number % 2 == 0 else CONTESTANTS[::-1]:
            told = ask(contestant, part, name, [best[contestant]] if number else args.batches)
            found = {int(batch): rate for batch, rate in told["rates"].items() if rate is not None}
            if not found:
                raise SystemExit(
                    f"{contestant}, {part} {name}: no batch of {args.batches} fits: give smaller ones with --batches"
                )
            best[contestant] = max(found, key=lambda batch: found[batch])
            rates[contestant].append(found[best[contestant]])
            kind = told["device"] or kind
    peak = peak_flops(kind, "bfloat16")
    operations = 2 * macs(model) * (BACKWARD_FACTOR if part == "train" else args.sampling_steps)
    for contestant in CONTESTANTS:
        rate = statistics.median(rates[contestant])
        against = [mine / other for mine, other in zip(rates[contestant], rates["torch.compile"])]
        ratio = f"{statistics.median(against):.2f} [{min(against):.2f}, {max(against):.2f}]"
        share = f"{operations * rate / peak:.1%}" if peak else "unknown"
        what = f"{part} {name}" if part == "train" else f"{part} {name}, {args.sampling_steps} steps"
        print(f"| {what} | {contestant} | {best[contestant]} | {rate:.4g} | {share} | {ratio} | {kind} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="XL/2,L/2,B/2", help="sizes and patches (default: XL/2,L/2,B/2)")
    parser.add_argument("--parts", default="train,sample", help="default: train,sample")
    parser.add_argument("--batches", default="64,128,256", help="tried for each (default: 64,128,256)")
    parser.add_argument("--rounds", type=int, default=1, help="further rounds repeat the best batch (default: 1)")
    parser.add_argument("--steps", type=int, default=20, help="of training, timed and to warm up (default: 20)")
    parser.add_argument("--sampling-steps", type=int, default=250, help="default: 250")
    parser.add_argument("--ladder", default="dit", help="default: dit")
    parser.add_argument("--smoke", action="store_true", help="nano S/8, batch 2, two steps")
    parser.add_argument("--one", nargs=3, metavar=("CONTESTANT", "PART", "MODEL"), help="one measurement, as JSON")
    args = parser.parse_args()
    if args.smoke:
        args.ladder, args.models, args.steps, args.sampling_steps = "nano", "S/8", 2, 2
        args.batches = args.batches if args.one else "2"
    args.batches = [int(batch) for batch in args.batches.split(",")]
    if args.one:
        print(json.dumps(one(args)))
        return
    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "dit-gpu-benchmark")
    )  # a second round compiles nothing anew
    print("| case | contestant | batch | images/s | utilisation | ratio of rates, median [range] | device |")
    print("|---|---|---|---|---|---|---|")
    for part in args.parts.split(","):
        for name in args.models.split(","):
            compare(part, name, args)


if __name__ == "__main__":
    main()
