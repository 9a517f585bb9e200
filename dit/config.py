"""What a study's file imports to declare its runs: the public names of `dit.design`, in one place that keeps its name."""

from dit.design.blocks import BLOCKS, Block, Count, attention_and_mlp
from dit.design.config import (
    LADDERS,
    SIZES,
    DiffusionConfig,
    Evaluation,
    Guard,
    Model,
    ModelConfig,
    OptimConfig,
    RunArguments,
    RunConfig,
    Size,
    model_config,
)
from dit.design.data import DATASETS, Data, DataConfig
from dit.design.features import Features
from dit.design.guidance import WeakModel, autoguided_by
from dit.design.metrics import Metric
from dit.design.objectives import Objective, ObjectiveConfig
from dit.design.samplers import Sampler
from dit.design.unet import UNetConfig
from dit.design.unet.models import unet_config

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
    "Features",
    "Guard",
    "Metric",
    "Model",
    "ModelConfig",
    "Objective",
    "ObjectiveConfig",
    "OptimConfig",
    "RunArguments",
    "RunConfig",
    "Sampler",
    "Size",
    "UNetConfig",
    "WeakModel",
    "attention_and_mlp",
    "autoguided_by",
    "model_config",
    "unet_config",
]
