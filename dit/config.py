"""What a study's file imports to declare its runs: the public names of `dit.design`, in one place that keeps its name."""

from dit.design.config import (
    BLOCKS,
    DATASETS,
    LADDERS,
    SIZES,
    Block,
    DataConfig,
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
from dit.design.features import Features
from dit.design.metrics import Metric

__all__ = [
    "BLOCKS",
    "DATASETS",
    "LADDERS",
    "SIZES",
    "Block",
    "DataConfig",
    "DiffusionConfig",
    "Evaluation",
    "Features",
    "Guard",
    "Metric",
    "ModelConfig",
    "OptimConfig",
    "RunArguments",
    "RunConfig",
    "Size",
    "model_config",
]
