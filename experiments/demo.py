"""Does the paper's design space keep its order on real images that fit a laptop?

Question: on 8x8 digits, does the Fréchet distance fall as Gflops grow, along model size and along patch size, for each of the four
blocks, and which block is best at equal training?
Command: `dit sweep demo` (or `make demo`).
Cost: 48 cells on two idle CPU cores in a quarter of an hour.
Expectation: the distance falls with Gflops, along size and along patch size, most surely for adaLN-Zero, which is the best block at every
size and patch size; S at a patch of 1 has 64 tokens and a width of 24 to think with, and may not use them in the time.

Patches of 4, 2 and 1 leave 4, 16 and 64 tokens of an 8x8 image, the paper's factor of four from one to the next; against them the `nano`
ladder is as wide as the paper's is against its own (S: 1.5 channels for each number in the largest patch).
The learning rate and the moving averages suit a run of thousands of steps rather than hundreds of thousands.
"""

from dit.design.config import BLOCKS, DATASETS, SIZES, Evaluation, OptimConfig, RunConfig, model_config

DATA = DATASETS["digits"]
PATCH_SIZES = (4, 2, 1)
STEPS = 3_000
SCORED_STEPS = (1_000, 2_000, 3_000)
SAMPLING_STEPS = (5, 10, 50)
METRICS = ("fid", "sfid", "is", "precision", "recall", "kid")
OPTIM = OptimConfig(learning_rate=3e-3, b2=0.99, ema_decay=0.99)


def evaluations(block: str, size: str) -> tuple[Evaluation, ...]:
    """Scores along training for every cell; for adaLN-Zero's S and XL also along the number of sampling steps."""
    scores = [Evaluation(step, "digits", num_samples=512, sampling_steps=25, metrics=METRICS) for step in SCORED_STEPS]
    if block == "adaln_zero" and size in ("S", "XL"):
        scores += [
            Evaluation(STEPS, "digits", num_samples=512, sampling_steps=n, metrics=METRICS) for n in SAMPLING_STEPS
        ]
    return tuple(scores)


def runs() -> list[RunConfig]:
    """Every block, size and patch size: 48 cells."""
    return [
        RunConfig(
            model=model_config(block, size, patch_size, DATA, ladder="nano"),
            data=DATA,
            steps=STEPS,
            batch_size=8,
            optim=OPTIM,
            evaluations=evaluations(block, size),
        )
        for block in BLOCKS
        for size in SIZES
        for patch_size in PATCH_SIZES
    ]
