"""The paper's four claims on real 32x32 images: every block, size and patch size on MNIST, with three seeds.

Question: which block is best at equal training; do Gflops rather than parameters set quality; are larger models more compute-efficient;
can sampling compute buy back a small model?
Command: `dit sweep mnist`, then `dit report runs/mnist`; docs/studies/mnist holds what came out.
Cost: 144 cells (48 with three seeds) of 1,000 steps at batch 8; patch 2, with the 256 tokens of the paper, is four fifths of it.
Expectation: the paper's order of blocks and the fall with Gflops in the training loss; in the distance only as far as 1,000 steps of 8
images, 1.6 passes over the data, let samples come near to digits.

The `nano` ladder keeps the paper's order of growth; learning rate and moving averages suit a run of a thousand steps.
"""

from dit.design.config import BLOCKS, DATASETS, SIZES, Evaluation, OptimConfig, RunConfig, model_config

DATA = DATASETS["mnist"]
PATCH_SIZES = (8, 4, 2)
SEEDS = (0, 1, 2)
STEPS = 1_000
SCORED_STEPS = (500, 1_000)
SAMPLING_STEPS = (4, 8, 32, 64)
OPTIM = OptimConfig(learning_rate=3e-3, b2=0.99, ema_decay=0.99)


def evaluations(block: str, patch_size: int, seed: int) -> tuple[Evaluation, ...]:
    """Scores along training for every cell; for adaLN-Zero's first seed also along the number of sampling steps."""
    scores = [Evaluation(step, "mnist", num_samples=256, sampling_steps=16) for step in SCORED_STEPS]
    if block == "adaln_zero" and patch_size in (8, 4) and seed == SEEDS[0]:
        scores += [Evaluation(STEPS, "mnist", num_samples=256, sampling_steps=n) for n in SAMPLING_STEPS]
    return tuple(scores)


def runs() -> list[RunConfig]:
    """Every block, size, patch size and seed: 144 cells."""
    return [
        RunConfig(
            model=model_config(block, size, patch_size, DATA, ladder="nano"),
            data=DATA,
            steps=STEPS,
            batch_size=8,
            seed=seed,
            optim=OPTIM,
            evaluations=evaluations(block, patch_size, seed),
        )
        for seed in SEEDS
        for block in BLOCKS
        for size in SIZES
        for patch_size in PATCH_SIZES
    ]
