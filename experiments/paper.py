"""The paper's own fifteen runs on ImageNet at 256 px: twelve adaLN-Zero models, and the other three blocks at XL/2.

Question: do the FIDs of Table 4 and of Fig. 5 come out again?
Command: `dit sweep paper --data latents-256 --vae sd-vae-ft-mse --reference VIRTUAL_imagenet256_labeled.npz`; `dit plan paper` tells
the bill first; `dit results paper` prints what was published.
Cost: 15 runs of 400K steps at batch 256; 2.1e11 Gflops of training, one multiply-add a flop.
Expectation: Table 4 within the 1-2 % that retraining with another seed moves FID.
"""

from dit.design.config import RunConfig
from experiments import grid


def runs() -> list[RunConfig]:
    """The cells of the grid that the paper trained."""
    return [
        run
        for run in grid.runs()
        if run.model.block == "adaln_zero" or (run.model.size, run.model.patch_size) == ("XL", 2)
    ]
