"""What a study's file imports to declare its runs: the public names of `dit.design`, in one place that keeps its name."""

from dit.design.blocks import BLOCKS, Block, Count, attention_and_mlp
from dit.design.config import (
    LADDERS,
    SIZES,
    DiffusionConfig,
    Evaluation,
    Guard,
    ModelConfig,
    OptimConfig,
    RunArguments,
    RunConfig,
    Size,
    model_config,
)
from dit.design.data import DATASETS, Data, DataConfig

__all__ = [
    "BLOCKS",
    "DATASETS",
    "LADDERS",
    "SIZES",
    "Block",
    "Count",
    "Data",
    "DataConfig",
    "DiffusionConfig",
    "Evaluation",
    "Guard",
    "ModelConfig",
    "OptimConfig",
    "RunArguments",
    "RunConfig",
    "Size",
    "attention_and_mlp",
    "model_config",
]
