"""Transformer against U-Net at equal Gflops on ImageNet at 256 px: the comparison that the paper draws from published numbers.

Question: on the same latents, diffusion and budget, is DiT at a patch of 2 ahead of latent diffusion's U-Net at the same Gflops, at each
of the four sizes, and does the distance between them grow or shrink with compute?
Command: `dit sweep unet_vs_dit_imagenet --data latents-256 --vae sd-vae-ft-mse --reference VIRTUAL_imagenet256_labeled.npz`;
`dit plan unet_vs_dit_imagenet` tells the bill first.
Cost: 8 cells of 400K steps at batch 256, one seed and the paper's learning rate; 1.4e11 Gflops of training, one multiply-add a flop, and
22,000 (12,000 to 40,000) A100-hours or 33,000 (13,000 to 120,000) USD by `dit plan --hardware a100x8`. A learning rate tuned over three
values costs three times, three seeds as well nine times as much.
Expectation: DiT's row is the paper's Table 4 (68.40, 43.47, 23.33 and 19.47 at a patch of 2); the U-Nets' is unpublished. LDM-8, of half
XL/2's Gflops, was published at FID 7.76 with guidance, DiT-XL/2 at 2.27 after 7M steps.
"""

from dit.config import DATASETS, SIZES, Evaluation, RunConfig, model_config, unet_config

DATA = DATASETS["imagenet256"]
STEPS = 400_000
SCORED_STEPS = (50_000, 100_000, 200_000, 300_000, 400_000)


def runs() -> list[RunConfig]:
    """Both families at each size, scored as the paper's scaling study is."""
    return [
        RunConfig(
            model=model,
            data=DATA,
            steps=STEPS,
            evaluations=tuple(
                Evaluation(step, "inception", num_samples=50_000, decoder="sd-vae-ft-mse") for step in SCORED_STEPS
            ),
        )
        for size in SIZES
        for model in (model_config("adaln_zero", size, 2, DATA), unet_config(size, DATA))
    ]
