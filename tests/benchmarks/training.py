"""How fast training, sampling and compiling are, beside PyTorch where it is installed: `python tests/benchmarks/training.py [PART ...]`.

Parts: train (S/8, S/4, S/2 against a PyTorch twin, eager and compiled), sample (50 steps of S/4), compile (XL, scanned against
unrolled) and harness (the nano ladder through `dit.train.loop` against the same step written as a bare optax loop). Contestants take turns
within each round, and the ratios are those of a round, so that what else the machine does falls on both; the table shows their median
and range. All use the same number of threads, batch and float32, and run in this one process, under the glibc tunables that `dit sweep`
gives its workers (memory kept between steps, in huge pages): the script starts itself again with them unless GLIBC_TUNABLES is set,
empty for none. PyTorch gains by them too. All parts take about a quarter of an hour on two idle cores; --smoke runs each to its end on
the smallest sizes, for a machine whose times mean nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for torch_twin
sys.path.remove(str(Path(__file__).parent))  # where a benchmark would pass for the package `sweeps`

from sweeps.engines.local import MALLOC

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CELLS = {"S/8": (8, 32, 5), "S/4": (4, 16, 5), "S/2": (2, 16, 3)}
"""Patch size, batch, and rounds."""
SAMPLING_ROUNDS = COMPILE_ROUNDS = 3
HARNESS_ROUNDS = 9
BLOCK = 50


@dataclass(frozen=True)
class Extent:
    """How much of it to run. `rounds` None leaves each part its own."""

    rounds: int | None = None
    batch: int | None = None
    depth: int | None = None
    sampling_steps: int = 50
    torch_compile: bool = True


def interleaved(
    contestants: dict[str, Callable[[], Any]],
    rounds: int,
    warm: dict[str, Callable[[], Any]] | None = None,
    before: int = 0,
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one unmeasured call of each (or of what warms it up).

    Each turn begins with `before` unmeasured calls: a system may take back memory that lies idle while the others have their turn.
    """
    for contestant in (warm or contestants).values():
        contestant()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
        for name in order:
            for _ in range(before):
                contestants[name]()
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


def small(patch_size: int, depth: int | None) -> Any:
    """S on 32×32×4 latents, cut to `depth` blocks where one is given."""
    from dit.design.config import DATASETS, model_config

    model = model_config("adaln_zero", "S", patch_size, DATASETS["imagenet256"])
    return replace(model, depth=depth) if depth else model


def our_step(patch_size: int, batch: int, depth: int | None) -> Callable[[], Any]:
    """A training step of S as `dit` takes it."""
    import jax

    from dit.design.config import DATASETS, RunConfig
    from dit.train.step import build

    program = build(RunConfig(small(patch_size, depth), DATASETS["imagenet256"], 1, batch))
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, 32, 32, 4)).astype(np.float32)
    labels = rng.integers(0, 1000, batch).astype(np.int32)
    leaves = [jax.tree.leaves(program.init())]

    def step() -> None:
        leaves[0], metrics = program.step.flat(leaves[0], *program.put((images, labels)))
        jax.block_until_ready(metrics)

    return step


def torch_training(patch_size: int, compiled: bool, depth: int | None) -> Any:
    import torch
    from torch_twin import TorchTraining

    torch.set_num_threads(THREADS)
    return TorchTraining(patch_size, compiled, **({"depth": depth} if depth else {}))


def torch_step(patch_size: int, batch: int, compiled: bool, depth: int | None) -> Callable[[], Any]:
    """The same step in PyTorch: draws, hybrid loss, AdamW, moving average."""
    import torch

    training = torch_training(patch_size, compiled, depth)
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 4, 32, 32, generator=rng)
    labels = torch.randint(0, 1000, (batch,), generator=rng)
    return lambda: training.step(images, labels)


def train(extent: Extent, cells: list[str]) -> None:
    for name in cells:
        patch_size, batch, rounds = CELLS[name]
        shape = (patch_size, extent.batch or batch)
        contestants = {
            "PyTorch eager": torch_step(*shape, False, extent.depth),
            "dit": our_step(*shape, extent.depth),
        }
        if extent.torch_compile:
            contestants["torch.compile"] = torch_step(*shape, True, extent.depth)
        show(f"train {name} B{shape[1]}", interleaved(contestants, extent.rounds or rounds, before=1), "PyTorch eager")


def sample(extent: Extent) -> None:
    """Ancestral steps of 16 images of S/4, without guidance; warmed up by two steps, which compile the same programs."""
    import jax

    from dit.design.config import DiffusionConfig, Evaluation
    from dit.model.compute import compute_on
    from dit.model.transformer import DiT, applied, nnx
    from dit.score.sampling import Sampler

    model, batch = small(4, extent.depth), extent.batch or 16
    params = jax.jit(lambda: nnx.state(DiT(model, rngs=nnx.Rngs(0))))()
    sampler = Sampler(
        applied(model, compute_on(jax.devices()[0], "float32", model), "cpu"), model, DiffusionConfig(), batch
    )
    torches = {"PyTorch eager": torch_training(4, False, extent.depth)}
    if extent.torch_compile:
        torches["torch.compile"] = torch_training(4, True, extent.depth)

    def contestants(steps: int) -> dict[str, Callable[[], Any]]:
        evaluation = Evaluation(1, "none", batch, sampling_steps=steps)
        ours = {"dit": lambda: list(sampler.draw(params, evaluation, 0, batch))}
        return {name: lambda each=each: each.sample(batch, steps) for name, each in torches.items()} | ours

    steps = extent.sampling_steps
    times = interleaved(contestants(steps), extent.rounds or SAMPLING_ROUNDS, contestants(2))
    show(f"sample S/4 B{batch}, {steps} steps", times, "PyTorch eager")


def compile_time(extent: Extent) -> None:
    """Seconds to compile the gradient of XL/2 at batch 2: blocks scanned, and all 28 unrolled."""
    import jax
    import jax.numpy as jnp

    from dit.design.config import DATASETS, model_config
    from dit.model.compute import Compute
    from dit.model.transformer import DiT, applied, nnx

    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    model = model_config("adaln_zero", "XL", 2, DATASETS["imagenet256"])
    model = replace(model, depth=extent.depth or model.depth)
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
    contestants = {"scanned": contestant(1), "unrolled": contestant(model.depth)}
    for _ in range(extent.rounds or COMPILE_ROUNDS):
        for name, one in contestants.items():
            start = time.perf_counter()
            one()
            times[name].append(time.perf_counter() - start)
    jax.config.update("jax_enable_compilation_cache", cached)
    show(f"compile gradient of XL/2, {model.depth} blocks", times, "unrolled")


def bare_loop(run: Any, data: Any, flat: bool) -> Callable[[int], Any]:
    """The step as one would write it by hand: the model's function, optax's AdamW, no guard, no rows; the loss fetched at the end.

    Its state goes into the compiled step as Flax gives it, or, `flat`, as a list of arrays, which is the least that JAX can be given.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from dit.design.schedule import linear_schedule
    from dit.diffusion.process import tables, training_losses
    from dit.model.compute import compute_on
    from dit.model.transformer import DiT, applied, nnx
    from dit.train.step import draw_examples

    model = applied(run.model, compute_on(jax.devices()[0], "float32", run.model), "cpu")
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
            return training_losses(function, table, images, draws.labels, draws.times, draws.noise).loss.mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda a, b: o.ema_decay * a + (1 - o.ema_decay) * b, ema, params)
        return (params, ema, opt_state, count + 1), value

    first = init()
    structure = jax.tree.structure(first)

    def flat_step(leaves: Any, images: Any, labels: Any) -> Any:
        after, value = step(jax.tree.unflatten(structure, leaves), images, labels)
        return jax.tree.leaves(after), value

    compiled = jax.jit(flat_step if flat else step, donate_argnums=0)
    state = [jax.tree.leaves(first) if flat else first]

    def advance(steps: int) -> None:
        value = None
        for number in range(steps):
            state[0], value = compiled(state[0], *data.batch(number))
        jax.block_until_ready(value)

    return advance


def harness(extent: Extent, sizes: list[str]) -> None:
    """The nano ladder, adaLN-Zero at patch 4: blocks of 50 steps through the loop, with rows, guard and prefetching, and bare."""
    import jax

    from dit.data.batches import ImageDataset, load_images
    from dit.design.config import DATASETS, OptimConfig, RunConfig, model_config
    from dit.train.loop import train as loop
    from dit.train.step import build

    images, data = load_images("digits"), DATASETS["digits"]
    optim = OptimConfig(learning_rate=3e-3, b2=0.99, ema_decay=0.99)
    for size in sizes:
        run = RunConfig(model_config("adaln_zero", size, 4, data, "nano"), data, 4000, 8, optim=optim)
        program, dataset = build(run), ImageDataset(*images, 8, 0)
        bare, flat = (bare_loop(run, ImageDataset(*images, 8, 0), each) for each in (False, True))
        states = {1: program.init(), 10: program.init()}

        def through(length: int, program=program, states=states, dataset=dataset) -> None:
            stop = int(states[length].step) + BLOCK
            states[length] = loop(program, states[length], dataset, stop, BLOCK, lambda row: None, length=length)
            jax.block_until_ready(states[length].step)

        contestants = {
            "bare optax loop": lambda bare=bare: bare(BLOCK),
            "bare, state as a list of arrays": lambda flat=flat: flat(BLOCK),
            "dit, one step a dispatch": lambda: through(1),
            "dit, ten steps a dispatch": lambda: through(10),
        }
        times = interleaved(contestants, extent.rounds or HARNESS_ROUNDS)
        show(f"nano {size}/4 B8, {BLOCK} steps", times, "bare optax loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="train, sample, compile, harness (default: all)")
    parser.add_argument("--rounds", type=int, help="of every part (default: 3 to 9, each part its own)")
    parser.add_argument("--cells", default=",".join(CELLS), help="of train (default: S/8,S/4,S/2)")
    parser.add_argument("--sizes", default="S,B,L,XL", help="of harness (default: S,B,L,XL)")
    parser.add_argument("--no-torch-compile", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="two blocks, batch 2, four sampling steps, one round")
    args = parser.parse_args()
    if "GLIBC_TUNABLES" not in os.environ:
        environment = {"JAX_PLATFORMS": "cpu", **os.environ, "GLIBC_TUNABLES": MALLOC}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    extent = Extent(args.rounds, torch_compile=not args.no_torch_compile)
    if args.smoke:
        extent = replace(extent, rounds=1, batch=2, depth=2, sampling_steps=4)
    parts = {
        "train": lambda: train(extent, args.cells.split(",")),
        "sample": lambda: sample(extent),
        "compile": lambda: compile_time(extent),
        "harness": lambda: harness(extent, args.sizes.split(",")),
    }
    chosen = args.parts or list(parts)
    if unknown := set(chosen) - set(parts):
        parser.error(f"unknown part {', '.join(sorted(unknown))}: expected some of {', '.join(parts)}")
    print(
        f"{THREADS} threads, load {os.getloadavg()[0]:.1f}, GLIBC_TUNABLES {os.environ['GLIBC_TUNABLES'] or 'none'}\n"
    )
    print("| case | contestant | median | ratio, median [range] | rounds |\n|---|---|---|---|---|")
    took = {}
    for part in chosen:
        start = time.perf_counter()
        parts[part]()
        took[part] = f"{part} {time.perf_counter() - start:.0f} s"
    print(f"\ntook: {', '.join(took.values())}; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
