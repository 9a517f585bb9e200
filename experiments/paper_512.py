"""The paper's run at 512 px: DiT-XL/2 with adaLN-Zero on latents of four times as many tokens.

Question: do the FIDs at 512 px come out again, early and late, without and with guidance?
Command: `dit sweep paper_512 --data latents-512 --vae sd-vae-ft-mse --reference VIRTUAL_imagenet512.npz`.
Cost: one run of 3M steps at batch 256, 524.60 Gflops an image and pass; 1.2e12 Gflops of training, one multiply-add a flop.
Expectation: FID 13.78 at 1301K steps and 11.93 at 3000K without guidance, 4.64 and 3.04 with scales 1.25 and 1.5.

The guided numbers are Table 3's and were decoded with the ft-EMA autoencoder, under which the unguided run scores 12.03: with ft-MSE
expect about as small a difference there.
"""

from dit.design.config import DATASETS, Evaluation, RunConfig, model_config

DATA = DATASETS["imagenet512"]
EARLY, LATE = 1_301_000, 3_000_000
GUIDANCE = (1.25, 1.5)


def evaluation(step: int, cfg_scale: float = 1.0) -> Evaluation:
    """50,000 samples of 250 DDPM steps; guidance moves three of the four channels, as the released code does."""
    return Evaluation(step, "inception", num_samples=50_000, cfg_scale=cfg_scale, decoder="sd-vae-ft-mse")


def runs() -> list[RunConfig]:
    """One cell."""
    return [
        RunConfig(
            model=model_config("adaln_zero", "XL", 2, DATA),
            data=DATA,
            steps=LATE,
            evaluations=(evaluation(EARLY), evaluation(LATE), *(evaluation(LATE, scale) for scale in GUIDANCE)),
        )
    ]
