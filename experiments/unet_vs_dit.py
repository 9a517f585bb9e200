"""Is a transformer or a U-Net better at equal Gflops, and at equal training compute? On MNIST at 32x32 pixels.

Question: at the Gflops of nano DiT at a patch of 2, with adaLN-Zero, does the transformer reach the lower loss and distance, each family at
its own best learning rate?
Command: `dit sweep unet_vs_dit`, then `dit report runs/unet_vs_dit`; `dit plan unet_vs_dit` tells the bill first.
Cost: 36 cells: two sizes of each family at three learning rates, with three seeds, 1,000 steps of 8 images; the two sizes' Gflops agree
between the families within 1.1 %.
Expectation: the paper's Fig. 2 has DiT ahead of U-Nets at equal Gflops on ImageNet latents; at so short a training convolutions, which
need not learn what a neighbour is, may be ahead.

The original U-Nets were trained without a null class (ADM, LDM-8) or with one (LDM-4); here both families have one and drop a tenth of the
labels. Training compute is the same step for step, so that rows at equal steps are rows at equal compute.
"""

from dit.config import DATASETS, Evaluation, Model, OptimConfig, RunConfig, model_config, unet_config

DATA = DATASETS["mnist"]
SIZES = ("S", "B")
SEEDS = (0, 1, 2)
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
STEPS = 1_000
SCORED_STEPS = (500, 1_000)


def models() -> list[Model]:
    """Both families at each size."""
    return [
        model
        for size in SIZES
        for model in (
            model_config("adaln_zero", size, 2, DATA, ladder="nano"),
            unet_config(size, DATA, ladder="unet-nano-32"),
        )
    ]


def runs() -> list[RunConfig]:
    """Both families, two sizes, three learning rates, three seeds: 36 cells."""
    return [
        RunConfig(
            model=model,
            data=DATA,
            steps=STEPS,
            batch_size=8,
            seed=seed,
            optim=OptimConfig(learning_rate=learning_rate, b2=0.99, ema_decay=0.99),
            evaluations=tuple(Evaluation(step, "mnist", num_samples=256, sampling_steps=16) for step in SCORED_STEPS),
        )
        for seed in SEEDS
        for model in models()
        for learning_rate in LEARNING_RATES
    ]
