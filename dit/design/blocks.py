"""The blocks of the design space: how each is made, conditioned, counted and drawn (Sec. 3.2, Fig. 3 of the paper). No JAX.

One's own is one more record, made in the study's own file. The counts are closed forms that know nothing of the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dit.design.parts import Part, builtin, digest, latest, named, names
from dit.errors import UserError

if TYPE_CHECKING:
    from dit.design.config import ModelConfig, RunConfig

CONDITION_TOKENS = 2
"""Timestep and label, each a token, where a block is conditioned by "tokens" or "memory"."""


@dataclass(frozen=True)
class Count:
    """Multiply-adds per image and trainable parameters of one component."""

    macs: int
    params: int


OTHERS = {"unet": "U-Net"}
"""Labels of what stands in the column `block` and is no block of a transformer."""

BlockCount = Callable[["ModelConfig", int], dict[str, Count]]
"""Components of one block of a model, which sees that many tokens of each image."""


@dataclass(frozen=True)
class Block(Part):
    """A transformer block.

    Attributes:
        make: `(config, rngs, compute)` to the module, called `block(x, condition)` with tokens (B, T, D), gives them back in that shape; or
            its "module:attribute".
        count: its multiply-adds and parameters by component, held against the model; `None`: counted by tracing the model.
        condition: "sum" of the timestep's and the label's embedding (B, D); both as a "memory" (B, 2, D); or both as "tokens" among the
            image's, which come last and are dropped after the last block.
        final: the decoder: "plain", or adaptive to the sum ("adaptive"; "zero": from zero).
        label: its name in figures and tables.
        colour: its own, such as "#D55E00"; nothing: one that no other block has.
        marker: matplotlib's.
        dash: "-", "--", "-.", ":", or matplotlib's (offset, on, off, ...) as one tuple.
    """

    word: ClassVar[str] = "block"
    make: Any
    count: BlockCount | None
    condition: Literal["sum", "memory", "tokens"]
    final: Literal["zero", "adaptive", "plain"]
    label: str
    colour: str = ""
    marker: str = "o"
    dash: tuple[float | int, ...] | Literal["-", "--", "-.", ":"] = "-"

    def as_data(self, runs: Iterable[RunConfig] = ()) -> dict[str, Any]:
        """Its looks and how it is conditioned, and the counts of the models that have it, of every size of their ladders."""
        models: Iterable[Any] = dict.fromkeys(run.model for run in runs)
        its = [one for one in models if (one.block, getattr(one, "block_source", "")) == (self.name, self.source)]
        told = {name: value for name, value in super().as_data().items() if name not in ("make", "count")}
        counts = {_key(one): _as_lists(self.count(one, self.tokens(one))) for one in its if self.count}
        for one in (size for model in its for size in _ladder(model) if _key(size) not in counts):
            with contextlib.suppress(Exception):  # the user's code, of a model that the study does not have
                counts |= {_key(one): _as_lists(self.count(one, self.tokens(one)))} if self.count else {}
        return told | {"counts": counts}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Its fields; the counts become a table."""
        fields = super().from_data(data)
        return fields | {"count": Table(fields["name"], fields.pop("counts", {}))}

    def tokens(self, model: ModelConfig) -> int:
        """Tokens of an image that the block sees."""
        return model.tokens + (CONDITION_TOKENS if self.condition == "tokens" else 0)


@dataclass(frozen=True)
class Table:
    """The counts of a block by model, as a study's record holds them."""

    name: str
    counts: Mapping[str, Mapping[str, Sequence[int]]]

    def __call__(self, model: ModelConfig, tokens: int) -> dict[str, Count]:
        """Components of one block.

        Raises:
            UserError: for a model that the study did not have.
        """
        if _key(model) not in self.counts:
            raise UserError(
                f"block '{self.name}' was not counted for {model.size}/{model.patch_size}: sweep the study again"
            )
        return {name: Count(*count) for name, count in self.counts[_key(model)].items()}


def _ladder(model: ModelConfig) -> list[ModelConfig]:
    """The model in every size of its ladder."""
    from dit.design.config import LADDERS

    sizes = LADDERS.get(model.ladder, {}).items()
    return [dataclasses.replace(model, size=name, **dataclasses.asdict(size)) for name, size in sizes]


def _key(model: ModelConfig) -> str:
    """What a block's count depends on."""
    fields = {name: value for name, value in dataclasses.asdict(model).items() if name not in ("size", "ladder")}
    return digest(fields)


def _as_lists(count: Mapping[str, Count]) -> dict[str, list[int]]:
    return {name: [one.macs, one.params] for name, one in count.items()}


def block_of(model: ModelConfig) -> Block:
    """The record of a model's block."""
    return named(Block, model.block, model.block_source)


def in_order(blocks: Iterable[str]) -> list[str]:
    """Each of the blocks once: the package's in the paper's order, then one's own as they were made, then names of no known block."""
    here = list(dict.fromkeys(blocks))
    return [name for name in names(Block) if name in here] + [name for name in here if name not in names(Block)]


def block_label(block: str) -> str:
    """A block's name in figures and tables."""
    part = latest(Block, block)
    return part.label if part else OTHERS.get(block, block)


def attention_and_mlp(modulation: int = 0, norms: int = 0, memory: int = 0) -> BlockCount:
    """The count of a block with self-attention and an MLP.

    Args:
        modulation: vectors of width D that it regresses from the condition, once an image.
        norms: LayerNorms with scale and shift.
        memory: tokens that it attends to besides, with projections of its own.
    """

    def count(model: ModelConfig, tokens: int) -> dict[str, Count]:
        d, m = model.hidden_size, model.mlp_hidden_size
        parts = {
            "attention_projections": Count(4 * tokens * d * d, 4 * d * d + 4 * d),
            "attention_products": Count(2 * tokens * tokens * d, 0),
            "mlp": Count(2 * tokens * d * m, 2 * d * m + m + d),
        }
        if memory:
            on_tokens = 2 * tokens * d * d + 2 * tokens * memory * d
            parts["cross_attention"] = Count(on_tokens + 2 * memory * d * d, 4 * d * d + 4 * d)
        if model.qk_norm:
            parts["qk_norms"] = Count(0, (2 if memory else 1) * 2 * (d // model.num_heads))
        if modulation:
            parts["modulation"] = Count(modulation * d * d, modulation * (d * d + d))
        if norms:
            parts["layer_norms"] = Count(0, norms * 2 * d)
        return parts

    return count


# The order is that of figures and tables; colours are from the Okabe-Ito set.
_ROOM = "dit.model.blocks:"
Block("in_context", _ROOM + "InContextBlock", attention_and_mlp(norms=2), "tokens", "plain",
      "In-context", "#E69F00", "v", (0, 1, 1.2))  # fmt: skip
Block("cross_attention", _ROOM + "CrossAttentionBlock", attention_and_mlp(norms=3, memory=CONDITION_TOKENS), "memory", "plain",
      "Cross-attention", "#56B4E9", "s", (0, 3, 1, 1, 1))  # fmt: skip
Block("adaln", _ROOM + "AdaLNBlock", attention_and_mlp(modulation=4), "sum", "adaptive",
      "adaLN", "#CC79A7", "D", (0, 4, 1.5))  # fmt: skip
Block("adaln_zero", _ROOM + "AdaLNZeroBlock", attention_and_mlp(modulation=6), "sum", "zero",
      "adaLN-Zero", "#D55E00")  # fmt: skip
BLOCKS: tuple[str, ...] = tuple(builtin(Block))
