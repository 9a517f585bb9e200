"""The paper's long run at 256 px: DiT-XL/2 with adaLN-Zero, as far as the released weights were trained.

Question: how far does FID fall with seventeen times the training of the scaling study, without and with guidance?
Command: `dit sweep paper_long --data latents-256 --vae sd-vae-ft-mse --reference VIRTUAL_imagenet256_labeled.npz`.
Cost: one run of 7M steps at batch 256; 6.4e11 Gflops of training, one multiply-add a flop.
Expectation: FID 19.47 at 400K steps, 10.67 at 2352K and 9.62 at 7000K without guidance; 2.30 at the end with a scale of 1.5.

It is the same run as XL/2 of `paper`, only longer, and passes through the same states.
"""

from dit.design.config import DATASETS, Evaluation, RunConfig, model_config

DATA = DATASETS["imagenet256"]
SCORED_STEPS = (400_000, 2_352_000, 7_000_000)
CFG_SCALE = 1.5


def evaluation(step: int, cfg_scale: float = 1.0) -> Evaluation:
    """50,000 samples of 250 DDPM steps; guidance moves three of the four channels, as the released code does."""
    return Evaluation(step, "inception", num_samples=50_000, cfg_scale=cfg_scale, decoder="sd-vae-ft-mse")


def runs() -> list[RunConfig]:
    """One cell."""
    last = SCORED_STEPS[-1]
    return [
        RunConfig(
            model=model_config("adaln_zero", "XL", 2, DATA),
            data=DATA,
            steps=last,
            evaluations=(*(evaluation(step) for step in SCORED_STEPS), evaluation(last, CFG_SCALE)),
        )
    ]
