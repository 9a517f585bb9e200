"""The paper's design space in full: every block at every size and patch size, on ImageNet at 256 px.

Question: does the order of the four blocks, which the paper measured at XL/2 alone, hold at every size and patch size?
Command: `dit sweep grid --data latents-256 --vae sd-vae-ft-mse --reference VIRTUAL_imagenet256_labeled.npz`; `dit plan grid` tells the
bill first.
Cost: 48 cells of 400K steps at batch 256; 3.8e11 Gflops of training, one multiply-add a flop.
Expectation: adaLN-Zero's row is the paper's Table 4; the other blocks are unpublished except at XL/2.
"""

from dit.design.config import BLOCKS, DATASETS, SIZES, Evaluation, RunConfig, model_config

DATA = DATASETS["imagenet256"]
PATCH_SIZES = (8, 4, 2)
STEPS = 400_000
SCORED_STEPS = (50_000, 100_000, 200_000, 300_000, 400_000)


def runs() -> list[RunConfig]:
    """48 cells, scored as the paper's scaling study is: 50,000 samples, 250 DDPM steps, no guidance, ft-MSE decoder."""
    return [
        RunConfig(
            model=model_config(block, size, patch_size, DATA),
            data=DATA,
            steps=STEPS,
            evaluations=tuple(
                Evaluation(step, "inception", num_samples=50_000, decoder="sd-vae-ft-mse") for step in SCORED_STEPS
            ),
        )
        for block in BLOCKS
        for size in SIZES
        for patch_size in PATCH_SIZES
    ]
