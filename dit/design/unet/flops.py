"""Multiply-adds and parameters of a U-Net, in closed form.

Convention: **one multiply-add is one flop**, for one image and one forward pass; the autoencoder, and any classifier, excluded. Counted
is every convolution and matrix product. Rule H1, which the paper's Table 6 follows, adds one operation for each element that enters a
normalisation: all eleven figures printed there come out under it, four of them not without it. This file never imports the model.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from dit.design.blocks import Count
from dit.design.unet import UNetConfig

Policy = Literal["none", "dots", "full"]


@dataclass
class _Tally:
    """Sums over a U-Net's layers, by part. `c` channels, `s` the side of a square of positions."""

    model: UNetConfig
    macs: Counter[str] = field(default_factory=Counter)
    params: Counter[str] = field(default_factory=Counter)
    normalised: int = 0
    kept: list[dict[Policy, int]] = field(default_factory=list)

    def product(self, part: str, times: int, d_in: int, d_out: int, bias: bool = True) -> None:
        """A matrix of weights applied `times` times."""
        self.macs[part] += times * d_in * d_out
        self.params[part] += d_in * d_out + bias * d_out

    def conv(self, part: str, s: int, c_in: int, c_out: int) -> None:
        """A 3x3 convolution with s*s outputs."""
        self.macs[part] += s * s * 9 * c_in * c_out
        self.params[part] += 9 * c_in * c_out + c_out

    def norm(self, s: int, c: int) -> None:
        """A normalisation with scale and shift."""
        self.params["norms"] += 2 * c
        self.normalised += s * s * c

    def res_block(self, s: int, c_in: int, c_out: int, s_in: int) -> None:
        """One that ends at side s; ADM's resample from `s_in` between the first norm and the first convolution."""
        self.norm(s_in, c_in)
        self.conv("res_convolutions", s, c_in, c_out)
        regressed = 2 if self.model.kind == "adm" else 1  # scale and shift, or shift alone
        self.product("embedding_projections", 1, 4 * self.model.width, regressed * c_out)
        self.norm(s, c_out)
        self.conv("res_convolutions", s, c_out, c_out)
        if c_in != c_out:
            self.product("skip_projections", s * s, c_in, c_out)
        before, after = s_in * s_in * c_in, s * s * c_out
        self.kept.append({"none": 7 * before + 8 * after, "dots": before + 2 * after, "full": before * 3 // 2})

    def attention(self, s: int, c: int) -> None:
        """Over s*s tokens of c channels."""
        t = s * s
        self.norm(s, c)
        products = 2 * self.model.heads(c) * t * t
        width: dict[Policy, int]
        width = {"none": 12, "dots": 4, "full": 0} if self.model.kind == "adm" else {"none": 50, "dots": 17, "full": 0}
        self.kept.append({policy: t * c * times + products * (policy == "none") for policy, times in width.items()})
        if self.model.kind == "adm":
            self.product("attention_projections", t, c, 3 * c)
            self.product("attention_projections", t, c, c)
            self.macs["attention_products"] += 2 * t * t * c
            return
        self.product("transformer_projections", t, c, c)
        for _ in range(3):
            self.norm(s, c)
            self.product("attention_projections", t, c, c, bias=False)  # three: queries, keys and values of the tokens
        self.product("attention_projections", t, c, c)
        self.macs["attention_products"] += 2 * t * t * c
        for _ in range(2):
            self.product("cross_attention", 1, self.model.context, c, bias=False)
        self.product("cross_attention", t, c, c, bias=False)
        self.product("cross_attention", t, c, c)
        self.macs["cross_attention"] += 2 * t * c
        self.product("mlp", t, c, 8 * c)
        self.product("mlp", t, 4 * c, c)
        self.product("transformer_projections", t, c, c)

    def resample(self, s_in: int, s: int, c: int) -> None:
        """From one level to its neighbour."""
        if self.model.kind == "adm":
            self.res_block(s, c, c, s_in)
        else:
            self.conv("resampling", s, c, c)
            self.kept.append({"none": 2 * s_in * s_in * c, "dots": s * s * c, "full": s_in * s_in * c})


def _tally(model: UNetConfig) -> _Tally:
    tally, width = _Tally(model), model.width
    tally.product("timestep_embedding", 1, width, 4 * width)
    tally.product("timestep_embedding", 1, 4 * width, 4 * width)
    if model.kind == "adm":
        tally.params["label_embedding"] += model.class_rows * 4 * width
    c, s = model.channels[0], model.input_size
    tally.conv("input", s, model.seen_channels, c)
    skipped, last = [c], len(model.channels) - 1
    for level, c_out in enumerate(model.channels):
        for _ in range(model.res_blocks):
            tally.res_block(s, c, c_out, s)
            c = c_out
            if s in model.attention:
                tally.attention(s, c)
            skipped.append(c)
        if level < last:
            s //= 2
            tally.resample(2 * s, s, c)
            skipped.append(c)
    tally.res_block(s, c, c, s)
    tally.attention(s, c)
    tally.res_block(s, c, c, s)
    for level in reversed(range(last + 1)):
        c_out = model.channels[level]
        for _ in range(model.res_blocks + 1):
            tally.res_block(s, c + skipped.pop(), c_out, s)
            c = c_out
            if s in model.attention:
                tally.attention(s, c)
        if level:
            s *= 2
            tally.resample(s // 2, s, c)
    tally.norm(s, c)
    tally.conv("output", s, c, model.out_channels)
    return tally


def components(model: UNetConfig) -> dict[str, Count]:
    """Multiply-adds (one forward pass, one image) and parameters of each part.

    The class embedder of latent diffusion, which its authors count apart, is the part `class_embedder`.
    """
    tally = _tally(model)
    parts = {name: Count(tally.macs[name], tally.params[name]) for name in tally.params | tally.macs}
    if model.kind == "ldm":
        parts["class_embedder"] = Count(0, model.class_rows * model.context)
    return parts


def normalised(model: UNetConfig) -> int:
    """Elements that enter a normalisation: what rule H1 adds to the multiply-adds."""
    return _tally(model).normalised


def kept(model: UNetConfig, policy: Policy = "none") -> int:
    """Numbers that one image's forward pass keeps for its backward pass: an estimate, near what JAX's own linearisation keeps."""
    return sum(part[policy] for part in _tally(model).kept)


def recomputed(model: UNetConfig) -> int:
    """Numbers that the part under recomputation holds at once: those of the largest."""
    return max(part["none"] for part in _tally(model).kept)


def published_params(model: UNetConfig) -> int:
    """Parameters as the originals are counted: without the class embedder of latent diffusion."""
    return sum(part.params for name, part in components(model).items() if name != "class_embedder")
