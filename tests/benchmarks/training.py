"""How fast training, sampling and compiling are, beside PyTorch where it is installed: `python tests/benchmarks/training.py [PART ...]`.

Parts: train (S/8, S/4, S/2 against a PyTorch twin, eager and compiled), sample (50 steps of S/4), compile (XL, scanned against
unrolled) and harness (the nano ladder through `dit.loop` against the same step written as a bare optax loop). Contestants take turns
within each round, and the ratios are those of a round, so that what else the machine does falls on both; the table shows their median
and range. All use the same number of threads, batch and float32. Set glibc's tunables (docs/performance.md) before the start: they
change JAX's times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for torch_twin

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CELLS = {"S/8": (8, 32), "S/4": (4, 16), "S/2": (2, 16)}  # patch size and batch
BLOCK = 50


def interleaved(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one unmeasured call of each."""
    for contestant in contestants.values():
        contestant()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
        for name in order:
            start = time.perf_counter()
            contestants[name]()
            times[name].append(time.perf_counter() - start)
    return times


def show(title: str, times: dict[str, list[float]], base: str, unit: str = "s") -> None:
    """A row per contestant: median seconds, and its ratio to `base`, median and range over rounds."""
    for name, seconds in times.items():
        ratios = [mine / other for mine, other in zip(seconds, times[base])]
        spread = f"{statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"
        print(f"| {title} | {name} | {statistics.median(seconds):.3f} {unit} | {spread} | {len(seconds)} |", flush=True)


def our_step(patch_size: int, batch: int) -> Callable[[], Any]:
    """A training step of S as `dit` takes it."""
    import jax

    from dit.config import DATASETS, RunConfig, model_config
    from dit.train import build

    data = DATASETS["imagenet256"]
    program = build(RunConfig(model_config("adaln_zero", "S", patch_size, data), data, 1, batch))
    rng = np.random.default_rng(0)
    images = jax.device_put(rng.standard_normal((batch, 32, 32, 4)).astype(np.float32))
    labels = jax.device_put(rng.integers(0, 1000, batch).astype(np.int32))
    state = [program.init()]

    def step() -> None:
        state[0], metrics = program.step(state[0], images, labels)
        jax.block_until_ready(metrics)

    return step


def torch_step(patch_size: int, batch: int, compiled: bool) -> Callable[[], Any]:
    """The same step in PyTorch: draws, hybrid loss, AdamW, moving average."""
    import torch
    from torch_twin import TorchTraining

    torch.set_num_threads(THREADS)
    training = TorchTraining(patch_size, compiled)
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 4, 32, 32, generator=rng)
    labels = torch.randint(0, 1000, (batch,), generator=rng)
    return lambda: training.step(images, labels)


def train(rounds: int, compile_torch: bool) -> None:
    for name, (patch_size, batch) in CELLS.items():
        contestants = {"PyTorch eager": torch_step(patch_size, batch, False), "dit": our_step(patch_size, batch)}
        if compile_torch:
            contestants["torch.compile"] = torch_step(patch_size, batch, True)
        show(f"train {name} B{batch}", interleaved(contestants, rounds), "PyTorch eager")


def sample(rounds: int, compile_torch: bool, steps: int) -> None:
    """Ancestral steps of 16 images of S/4, without guidance."""
    import jax
    import torch
    from torch_twin import TorchTraining

    from dit.compute import Compute
    from dit.config import DATASETS, DiffusionConfig, Evaluation, model_config
    from dit.model import DiT, applied, nnx
    from dit.sampling import Sampler

    torch.set_num_threads(THREADS)
    model = model_config("adaln_zero", "S", 4, DATASETS["imagenet256"])
    params = jax.jit(lambda: nnx.state(DiT(model, rngs=nnx.Rngs(0))))()
    sampler = Sampler(applied(model, Compute(), "cpu"), model, DiffusionConfig(), 16)
    evaluation = Evaluation(1, "none", 16, sampling_steps=steps)
    contestants: dict[str, Callable[[], Any]] = {
        "PyTorch eager": lambda: eager.sample(16, steps),
        "dit": lambda: list(sampler.draw(params, evaluation, 0, 16)),
    }
    eager = TorchTraining(4, False)
    if compile_torch:
        compiled = TorchTraining(4, True)
        contestants["torch.compile"] = lambda: compiled.sample(16, steps)
    show(f"sample S/4 B16, {steps} steps", interleaved(contestants, rounds), "PyTorch eager")


def compile_time(rounds: int) -> None:
    """Seconds to compile the gradient of XL/2 at batch 2: blocks scanned, and all 28 unrolled."""
    import jax
    import jax.numpy as jnp

    from dit.compute import Compute
    from dit.config import DATASETS, model_config
    from dit.model import DiT, applied, nnx

    jax.config.update("jax_enable_compilation_cache", False)
    model = model_config("adaln_zero", "XL", 2, DATASETS["imagenet256"])
    params = nnx.split(nnx.eval_shape(lambda: DiT(model, rngs=nnx.Rngs(0))))[1]
    shapes = [
        jax.ShapeDtypeStruct(*of) for of in (((2, 32, 32, 4), jnp.float32), ((2,), jnp.float32), ((2,), jnp.int32))
    ]

    def contestant(unroll: int) -> Callable[[], Any]:
        function = applied(model, Compute(unroll=unroll), "cpu")

        def compiled() -> None:
            jax.clear_caches()
            jax.jit(jax.grad(lambda p, x, t, y: jnp.sum(function(p, x, t, y)))).lower(params, *shapes).compile()

        return compiled

    times: dict[str, list[float]] = {"scanned": [], "unrolled": []}
    contestants = {"scanned": contestant(1), "unrolled": contestant(28)}
    for _ in range(rounds):
        for name, one in contestants.items():
            start = time.perf_counter()
            one()
            times[name].append(time.perf_counter() - start)
    show("compile gradient of XL/2", times, "unrolled")


def bare_loop(run: Any, data: Any) -> Callable[[int], Any]:
    """The step as one would write it by hand: the model's function, optax's AdamW, no guard, no rows; the loss fetched at the end."""
    import jax
    import jax.numpy as jnp
    import optax

    from dit.compute import Compute
    from dit.diffusion import linear_schedule, tables, training_losses
    from dit.model import DiT, applied, nnx
    from dit.train import draw_examples

    model = applied(run.model, Compute(), "cpu")
    o = run.optim
    optimizer = optax.adamw(o.learning_rate, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=0.0)

    @jax.jit
    def init() -> Any:
        params = nnx.split(DiT(run.model, rngs=nnx.Rngs(0)))[1]
        return params, jax.tree.map(jnp.copy, params), optimizer.init(params), jnp.zeros((), jnp.int32)

    def step(state: Any, images: Any, labels: Any) -> Any:
        params, ema, opt_state, count = state
        table = tables(linear_schedule(run.diffusion))
        draws = draw_examples(run, count, jnp.arange(len(images)), labels)

        def loss(params: Any) -> Any:
            function = lambda x, t, y: model(params, x, t, y)  # noqa: E731
            return training_losses(function, table, images, draws.labels, draws.timesteps, draws.noise).loss.mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda a, b: o.ema_decay * a + (1 - o.ema_decay) * b, ema, params)
        return (params, ema, opt_state, count + 1), value

    step = jax.jit(step, donate_argnums=0)
    state = [init()]

    def advance(steps: int) -> None:
        value = None
        for number in range(steps):
            state[0], value = step(state[0], *data.batch(number))
        jax.block_until_ready(value)

    return advance


def harness(rounds: int, sizes: list[str]) -> None:
    """Each cell of the demo's adaLN-Zero ladder: blocks of 50 steps through the loop, with rows, guard and prefetching, and bare."""
    import jax

    from dit.config import DATASETS, OptimConfig, RunConfig, model_config
    from dit.data import ImageDataset, load_images
    from dit.loop import train as loop
    from dit.train import build

    images = load_images("digits")
    for size in sizes:
        data = DATASETS["digits"]
        optim = OptimConfig(learning_rate=3e-3, b2=0.99, ema_decay=0.99)
        run = RunConfig(model_config("adaln_zero", size, 4, data, "nano"), data, 4000, 8, optim=optim)
        program, dataset = build(run), ImageDataset(*images, 8, 0)
        bare = bare_loop(run, ImageDataset(*images, 8, 0))
        states = {1: program.init(), 10: program.init()}

        def through(length: int, program=program, states=states, dataset=dataset) -> None:
            stop = int(states[length].step) + BLOCK
            states[length] = loop(program, states[length], dataset, stop, BLOCK, lambda row: None, length=length)
            jax.block_until_ready(states[length].step)

        contestants = {
            "bare optax": lambda bare=bare: bare(BLOCK),
            "dit, one step a dispatch": lambda: through(1),
            "dit, ten steps a dispatch": lambda: through(10),
        }
        show(f"nano {size}/4 B8, {BLOCK} steps", interleaved(contestants, rounds), "bare optax")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="train, sample, compile, harness (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cells", default="S/8,S/4,S/2", help="of train (default: S/8,S/4,S/2)")
    parser.add_argument("--sizes", default="S,B,L,XL", help="of harness (default: S,B,L,XL)")
    parser.add_argument("--sampling-steps", type=int, default=50, help="of sample (default: 50)")
    parser.add_argument("--no-torch-compile", action="store_true")
    args = parser.parse_args()
    parts = args.parts or ["train", "sample", "compile", "harness"]
    for cell in set(CELLS) - set(args.cells.split(",")):
        del CELLS[cell]
    print(f"{THREADS} threads, load {os.getloadavg()[0]:.1f}")
    print("| case | contestant | median | ratio, median [range] | rounds |\n|---|---|---|---|---|")
    if "train" in parts:
        train(args.rounds, not args.no_torch_compile)
    if "sample" in parts:
        sample(args.rounds, not args.no_torch_compile, args.sampling_steps)
    if "compile" in parts:
        compile_time(args.rounds)
    if "harness" in parts:
        harness(args.rounds, args.sizes.split(","))


if __name__ == "__main__":
    main()
