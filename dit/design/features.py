"""Features as records: what metrics are taken on, for which images, and how their columns are called.

A user's own data get features by a record that names the data set, whose small classifier is then trained on it, or by a function of
the user's own. Nothing here imports JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dit.design.data import Data
from dit.design.metrics import INCEPTION, require_name
from dit.design.parts import Part, find, settle
from dit.errors import UserError

if TYPE_CHECKING:
    from dit.design.config import RunConfig

SMALL = "dit.score.classifier:extractor"


@dataclass(frozen=True)
class Features(Part):
    """What makes features of images.

    Args:
        make: "module:attribute" of the package, `(features, weights, batch_size) -> Extractor`; or a function of the user's own from images
            (uint8, NHWC) to an array (N, F) of pooled features, or to (pooled, spatial (N, S), logits (N, K)), of which the last two may
            be None.
        channels: image channels that it takes.
        label: what it is called in words.
        data: the data set on which its small classifier is trained, by name; its source is found by itself.
        image_size: height and width that it takes; None for any.
    """

    word: ClassVar[str] = "features"
    make: str | Callable[..., Any] = SMALL
    channels: int = 3
    label: str = ""
    data: str = ""
    image_size: int | None = None
    data_source: str = ""

    def __post_init__(self) -> None:
        require_name(self)
        if self.make == SMALL and not self.data:
            raise UserError(
                f"features '{self.name}': give make=, a function of images, or data=, the name of a data set"
            )
        settle(self, "data_source", Data, self.data, required=bool(self.data))
        object.__setattr__(self, "label", self.label or self.name)
        super().__post_init__()


Features(INCEPTION, make="dit.score.features:fid_inception", channels=3, label="Inception")
Features("digits", channels=1, label="digits", data="digits", image_size=8)
Features("mnist", channels=1, label="mnist", data="mnist", image_size=32)


def features_of(run: RunConfig, name: str) -> Features:
    """The features of an evaluation of the run.

    Raises:
        UserError: if there are none of that name, or they take other images than the run's samples.
    """
    found = find(Features, name)
    channels, size = (3 if run.data.is_latent else run.data.in_channels), run.data.image_size
    if run.data.is_latent and found.name != INCEPTION and not found.source:
        raise UserError(f"features '{found.name}' cannot score images decoded from latents: expected inception")
    if found.channels != channels:
        raise UserError(
            f"features '{found.name}' take images of {found.channels} channel(s), those of data set '{run.data.name}' have {channels}: "
            "choose others"
        )
    if found.image_size not in (None, size):
        raise UserError(
            f"features '{found.name}' take images of {found.image_size}x{found.image_size}, those of data set '{run.data.name}' are "
            f"{size}x{size}: choose others"
        )
    return found


def check_scored(run: RunConfig) -> None:
    """Refuse evaluations that could not be taken, before a run is trained.

    Raises:
        UserError: as `features_of`, or for two evaluations of the same samples.
    """
    seen: dict[tuple[int, str], tuple[str, ...]] = {}
    for evaluation in run.evaluations:
        features_of(run, evaluation.features)
        if seen.setdefault((evaluation.step, evaluation.key), evaluation.metrics) != evaluation.metrics:
            raise UserError(
                f"{run.run} has two evaluations of the same samples at step {evaluation.step}: give one with the metrics of both"
            )
