"""What one run is: frozen dataclasses, the size ladders, and the identity of a run.

Every default lives here. A variant is `dataclasses.replace`. A run's identity hashes what changes its result; hardware, paths,
logging cadence, and how long to train (the learning rate is constant, so a longer run passes through the shorter one's states)
are not part of it. Nothing here imports JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dit.design.arguments import RunArguments as RunArguments
from dit.design.blocks import BLOCKS as BLOCKS
from dit.design.blocks import Block
from dit.design.checks import require_choice, require_kind, require_number, require_positive, require_whole
from dit.design.data import DATASETS as DATASETS
from dit.design.data import DataConfig
from dit.design.features import Features
from dit.design.guidance import WeakModel, check_guidance, from_json_values, plan_of
from dit.design.metrics import canonical, column, from_record
from dit.design.objectives import ObjectiveConfig
from dit.design.parts import digest as digest
from dit.design.parts import settle, without_defaults, written
from dit.design.samplers import Sampler
from dit.design.schedule import DiffusionConfig
from dit.design.unet import UNetConfig
from dit.errors import UserError

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Size:
    """A row of a size ladder (Table 1 of the paper)."""

    depth: int
    hidden_size: int
    num_heads: int


LADDERS: dict[str, dict[str, Size]] = {
    "dit": {
        "S": Size(12, 384, 6),
        "B": Size(12, 768, 12),
        "L": Size(24, 1024, 16),
        "XL": Size(28, 1152, 16),
    },
    # The paper's ladder at about a sixth of its depth and a sixteenth of its width: small images on a CPU.
    "nano": {
        "S": Size(2, 24, 2),
        "B": Size(2, 48, 3),
        "L": Size(4, 64, 4),
        "XL": Size(5, 72, 4),
    },
}
SIZES = ("S", "B", "L", "XL")


@dataclass(frozen=True)
class ModelConfig:
    """A diffusion transformer (Sec. 3.2 of the paper). `size` and `ladder` name a row of `LADDERS`, or say "custom".

    `qk_norm`, which the paper does not have, normalises each head's queries and keys (RMSNorm with a learned scale) before their product.
    `block_source` is that of a `Block` of the user's own, found by itself.
    """

    block: str
    patch_size: int
    depth: int
    hidden_size: int
    num_heads: int
    input_size: int = 32
    in_channels: int = 4
    num_classes: int = 1000
    mlp_ratio: float = 4.0
    learn_sigma: bool = True
    class_dropout_prob: float = 0.1
    size: str = "custom"
    ladder: str = "custom"
    qk_norm: bool = False
    block_source: str = ""

    def __post_init__(self) -> None:
        settle(self, "block_source", Block, self.block)
        require_positive(self, "patch_size", "depth", "hidden_size", "num_heads")
        require_positive(self, "input_size", "in_channels", "num_classes")
        if self.input_size % self.patch_size:
            divisors = [p for p in range(1, self.input_size + 1) if self.input_size % p == 0]
            raise UserError(
                f"patch_size {self.patch_size} does not divide the model's input of {self.input_size}: expected one of {divisors}"
            )
        width, heads = self.hidden_size, self.num_heads
        if width % heads:
            raise UserError(f"num_heads {heads} does not divide hidden_size {width}: choose a divisor")
        if width % 4:
            raise UserError(f"hidden_size {width} is not a multiple of 4, which the 2-D position embedding needs")
        require_number(self, "mlp_ratio", low=0, ends="(]")
        require_number(self, "class_dropout_prob", low=0, high=1, ends="[)")
        require_kind(self, bool, "learn_sigma", "qk_norm")
        require_kind(self, str, "block", "block_source", "size", "ladder")

    @property
    def tokens(self) -> int:
        """Image tokens T = (input_size / patch_size)²."""
        return (self.input_size // self.patch_size) ** 2

    @property
    def out_channels(self) -> int:
        """Channels the model predicts: the noise, and with `learn_sigma` as many for the variance."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def mlp_hidden_size(self) -> int:
        """Width of the MLP's hidden layer."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def growth(self) -> int:
        """What the weights of the blocks grow with."""
        return self.depth * self.hidden_size**2

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.hidden_size // self.num_heads


Model = ModelConfig | UNetConfig
"""What a run trains: either has its inputs and outputs, `tokens`, `head_dim`, and what stands in the columns of its cell."""


def model_config(
    block: str, size: str, patch_size: int, data: DataConfig, ladder: str = "dit", **changes: Any
) -> ModelConfig:
    """The model of one cell of the design space.

    Raises:
        UserError: for an unknown ladder, size or block, or a patch size that does not divide the input.
    """
    require_choice(ladder, list(LADDERS), "ladder")
    require_choice(size, list(LADDERS[ladder]), "size")
    row = LADDERS[ladder][size]
    return ModelConfig(
        block=block,
        patch_size=patch_size,
        depth=row.depth,
        hidden_size=row.hidden_size,
        num_heads=row.num_heads,
        input_size=data.input_size,
        in_channels=data.in_channels,
        num_classes=data.num_classes,
        size=size,
        ladder=ladder,
        **changes,
    )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW at a constant rate and an exponential moving average of the weights (Sec. 4)."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    ema_decay: float = 0.9999

    def __post_init__(self) -> None:
        require_number(self, "learning_rate", "eps", low=0, ends="(]")
        require_number(self, "weight_decay", low=0)
        require_number(self, "b1", "b2", low=0, high=1, ends="[)")
        require_number(self, "ema_decay", low=0, high=1)


@dataclass(frozen=True)
class Guard:
    """What becomes of a training step that goes wrong. Either is detected on the device, counted and logged in every case.

    A step whose loss or gradient norm is not finite stops the run, or is skipped: weights, moments and average stay as they were.
    A step spikes if its gradient norm exceeds `spike_factor` times the running root mean square that AdamW's own second moments
    hold of it, so that no further state is kept: it is only logged, or skipped, or stops the run.
    """

    nonfinite: Literal["stop", "skip"] = "stop"
    spike: Literal["log", "skip", "stop"] = "log"
    spike_factor: float = 10.0

    def __post_init__(self) -> None:
        require_choice(self.nonfinite, ("stop", "skip"), "treatment of steps that are not finite")
        require_choice(self.spike, ("log", "skip", "stop"), "treatment of spikes")
        require_number(self, "spike_factor", low=1, ends="(]")


@dataclass(frozen=True)
class Evaluation:
    """Scores to take of one set of samples: after which step, and under which declared protocol.

    `features` names the extractor ("digits", "mnist", "inception" or one's own); `metrics` what is taken of the samples: always the Fréchet
    distance, then others, which are no part of the protocol, so that one more leaves the rest as they are. `cfg_scale` 1 is no guidance;
    `cfg_channels` is how many channels guidance moves, 3 as the released code does (never more than the input has), `None` for all. It acts
    where low < σ <= high of `cfg_interval` (of a flow: t), towards the model itself without its label or away from `autoguidance`'s.
    `sampler` names a `Sampler`, `sampler_options` what differs from its own options; `sampler_source` is found by itself.
    """

    step: int
    features: str
    num_samples: int
    sampling_steps: int = 250
    sampler: str = "ddpm"
    cfg_scale: float = 1.0
    cfg_channels: int | None = 3
    ema: bool = True
    decoder: str = "none"
    sample_seed: int = 0
    precision: Precision = "float32"
    sampler_options: tuple[tuple[str, Any], ...] = ()
    sampler_source: str = ""
    cfg_interval: tuple[float, float] | None = None
    autoguidance: WeakModel | None = None
    metrics: tuple[Any, ...] = ("fid",)

    def __post_init__(self) -> None:
        settle(self, "sampler_source", Sampler, self.sampler)
        object.__setattr__(self, "sampler_options", tuple(sorted(self.sampler_options)))
        check_guidance(self)
        object.__setattr__(self, "features", written(Features, self.features, required=False))
        object.__setattr__(self, "metrics", canonical(self.metrics))
        require_choice(self.precision, get_args(Precision), "precision")
        optional = ["cfg_channels"] * (self.cfg_channels is not None)
        require_positive(self, "step", "num_samples", "sampling_steps", *optional)
        require_number(self, "cfg_scale", low=0)
        require_kind(self, str, "features", "decoder")
        require_kind(self, bool, "ema")
        require_whole(self, "sample_seed", below=2**32)

    @property
    def metric(self) -> str:
        """Column of the Fréchet distance: `fid` only for Inception features, `fd_<features>` for any other."""
        return column("fid", self.features)

    def column(self, metric: str) -> str:
        """Column of one of its metrics."""
        return column(metric, self.features)

    @functools.cached_property
    def key(self) -> str:
        """Hash of the declared protocol, without the step."""
        return digest(self.declared)

    @property
    def declared(self) -> dict[str, Any]:
        """The declared protocol as plain JSON values, without the step; a field younger than the first scores only where it is set."""
        declared = dataclasses.asdict(self)
        del declared["step"], declared["metrics"]
        younger = {"sampler_options": (), "sampler_source": "", "cfg_interval": None, "autoguidance": None}
        return without_defaults(declared, precision="float32", **younger)


@dataclass(frozen=True)
class RunConfig:
    """One cell of a study: everything that decides its result, plus how far to train and what to score on the way."""

    model: Model
    data: DataConfig
    steps: int
    batch_size: int = 256
    seed: int = 0
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluations: tuple[Evaluation, ...] = ()
    precision: Precision = "float32"
    guard: Guard = field(default_factory=Guard)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        require_positive(self, "steps", "batch_size")
        require_whole(self, "seed")
        require_choice(self.precision, get_args(Precision), "precision")
        model = (self.model.input_size, self.model.in_channels, self.model.num_classes)
        data = (self.data.input_size, self.data.in_channels, self.data.num_classes)
        if model != data:
            raise UserError(
                f"the model's (input_size, in_channels, num_classes) {model} differ from those of data set "
                f"'{self.data.name}', {data}: build the model with model_config(..., data)"
            )
        if isinstance(self.model, UNetConfig) and self.model.low_res_size:
            raise UserError(
                "an upsampler needs images of low resolution, which no data set here has: train its base model"
            )
        self.objective.check_model(self.model.out_channels // self.model.in_channels)
        for evaluation in self.evaluations:
            self._check_evaluation(evaluation)

    def _check_evaluation(self, evaluation: Evaluation) -> None:
        """Refuse what could not be scored once the training has been paid for."""
        if evaluation.step > self.steps:
            raise UserError(
                f"an evaluation at step {evaluation.step} lies past the run's {self.steps} steps: train longer or score earlier"
            )
        if evaluation.cfg_scale != 1 and not evaluation.autoguidance and not self.model.class_dropout_prob:
            raise UserError(f"cfg_scale {evaluation.cfg_scale:g} needs a null label: set class_dropout_prob above 0")
        plan_of(self, evaluation)

    @property
    def identity(self) -> dict[str, Any]:
        """What changes the result, as plain JSON values; `steps` and `evaluations` do not.

        A field younger than the first results is there only where it is set, so that those keep their identity.
        """
        fields = dataclasses.asdict(self)
        del fields["steps"], fields["evaluations"]
        fields["model"] = without_defaults(fields["model"], qk_norm=False, block_source="")
        fields["data"] = without_defaults(fields["data"], source="")
        fields["objective"] = self.objective.identity
        younger = {"guard": dataclasses.asdict(Guard()), "objective": {"name": "ddpm"}}
        return without_defaults(fields, precision="float32", **younger)

    @property
    def own_parts(self) -> set[tuple[str, str, str]]:
        """Kind, name and source of each part of the user's own that it rests on."""
        chosen = [
            ("Data", self.data.name, self.data.source),
            ("Block", self.model.block, getattr(self.model, "block_source", "")),
            ("Objective", self.objective.name, self.objective.source),
        ]
        for one in self.evaluations:
            chosen.append(("Sampler", one.sampler, one.sampler_source))
            written = [("Features", one.features), *(("Metric", name) for name in one.metrics)]
            chosen += [(kind, *text.partition("@")[::2]) for kind, text in written]
        return {one for one in chosen if one[2]}

    @functools.cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits of the identity's SHA-256."""
        return digest(self.identity)

    @functools.cached_property
    def run(self) -> str:
        """Readable name and folder of the run: `<block>-<size>-<patch>-s<seed>-<hash>`."""
        cell = f"{self.model.block}-{self.model.size}-{self.model.patch_size}-s{self.seed}"
        return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', cell)}-{self.hash}"


def to_json(run: RunConfig) -> dict[str, Any]:
    """A run as plain JSON values; `from_json` gives it back."""
    return dataclasses.asdict(run)


def model_from_json(value: dict[str, Any]) -> Model:
    """The model of these fields, of whichever family has them."""
    if "channels" not in value:
        return ModelConfig(**value)
    listed: dict[str, Any] = {name: tuple(value[name]) for name in ("channels", "attention")}
    return UNetConfig(**(value | listed))


def from_json(value: dict[str, Any]) -> RunConfig:
    """The run that `to_json` wrote.

    Raises:
        UserError: for a field that is missing or that this version does not know.
    """
    try:
        rest = dict(value)
        parts = {
            "model": model_from_json(rest.pop("model")),
            "data": DataConfig(**rest.pop("data")),
            "diffusion": DiffusionConfig(**rest.pop("diffusion")),
            "optim": OptimConfig(**rest.pop("optim")),
            "evaluations": tuple(
                Evaluation(**from_record(from_json_values(one))) for one in rest.pop("evaluations", ())
            ),
            "guard": Guard(**rest.pop("guard", {})),
            "objective": ObjectiveConfig(**rest.pop("objective", {})),
        }
        return RunConfig(**parts, **rest)
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"not a run configuration of this version: {error}") from error
