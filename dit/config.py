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
from dit.design.guidance import WeakModel, autoguided_by
from dit.design.objectives import Objective, ObjectiveConfig
from dit.design.samplers import Sampler

__all__ = [
    "BLOCKS",
    "DATASETS",
    "LADDERS",
    "SIZES",
    "Block",
    "DataConfig",
    "DiffusionConfig",
    "Evaluation",
    "Guard",
    "ModelConfig",
    "Objective",
    "ObjectiveConfig",
    "OptimConfig",
    "RunArguments",
    "RunConfig",
    "Sampler",
    "Size",
    "WeakModel",
    "autoguided_by",
    "model_config",
]
