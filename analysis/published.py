"""Every number that the paper publishes, as rows of the results table (arXiv:2212.09748, Tables 2-6 and the text of Sec. 5).

`gflops` and `params` are the printed values: one multiply-add is one flop, parameters are rounded to a million. The paper scores
under several protocols (decoder, guidance, number of samples, reference statistics of the image size); each row carries its own, so
that no two are mixed. What the paper leaves unsaid about a protocol is `None` there. Columns are those of `dit.design.rows`;
`citation` says where a row is printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analysis.comparable import MAIN_BLOCK
from dit.design.config import digest
from dit.design.flops import BACKWARD_FACTOR
from dit.design.metrics import ADM as METRICS
from dit.design.rows import Row

PAPER = "arXiv:2212.09748"
SOURCE = "paper"
REFERENCES = {
    "VIRTUAL_imagenet256_labeled.npz": "ImageNet 256 training set, statistics of the ADM suite",
    "VIRTUAL_imagenet512.npz": "ImageNet 512 training set, statistics of the ADM suite",
}
"""What the ADM suite calls the files with the statistics that the paper scores against."""
BATCH_SIZE = 256
SAMPLING_STEPS = 250


@dataclass(frozen=True)
class Cell:
    """A model whose size the paper prints: Gflops (one multiply-add is one flop) and millions of parameters."""

    block: str
    size: str
    patch_size: int
    image_size: int
    gflops: float
    params_millions: int

    @property
    def name(self) -> str:
        """The paper's name of the model, with what sets it apart from the plain adaLN-Zero one at 256 pixels."""
        name = f"DiT-{self.size}/{self.patch_size}"
        name += f"-{self.block}" if self.block != MAIN_BLOCK else ""
        return name + (f"-{self.image_size}" if self.image_size != 256 else "")

    @property
    def tokens(self) -> int:
        """Image tokens: the VAE divides each side by 8."""
        return (self.image_size // 8 // self.patch_size) ** 2


# Table 4: the sixteen models whose Gflops and parameters are printed.
CELLS = (
    Cell("adaln_zero", "S", 8, 256, 0.36, 33),
    Cell("adaln_zero", "S", 4, 256, 1.41, 33),
    Cell("adaln_zero", "S", 2, 256, 6.06, 33),
    Cell("adaln_zero", "B", 8, 256, 1.42, 131),
    Cell("adaln_zero", "B", 4, 256, 5.56, 130),
    Cell("adaln_zero", "B", 2, 256, 23.01, 130),
    Cell("adaln_zero", "L", 8, 256, 5.01, 459),
    Cell("adaln_zero", "L", 4, 256, 19.70, 458),
    Cell("adaln_zero", "L", 2, 256, 80.71, 458),
    Cell("adaln_zero", "XL", 8, 256, 7.39, 676),
    Cell("adaln_zero", "XL", 4, 256, 29.05, 675),
    Cell("adaln_zero", "XL", 2, 256, 118.64, 675),
    Cell("in_context", "XL", 2, 256, 119.37, 449),
    Cell("cross_attention", "XL", 2, 256, 137.62, 598),
    Cell("adaln", "XL", 2, 256, 118.56, 600),
    Cell("adaln_zero", "XL", 2, 512, 524.60, 675),
)
_L2, _XL2, _XL2_512 = CELLS[8], CELLS[11], CELLS[15]

# FID-50K after 400K steps, in the order of the first fifteen cells (Table 4).
_FID_400K = (
    *(153.60, 100.41, 68.40, 122.74, 68.38, 43.47, 118.87, 45.64, 23.33, 106.41, 43.01, 19.47),
    *(35.24, 26.14, 25.21),
)

_Scores = tuple[float | None, ...]


def _protocol(
    image_size: int, decoder: str | None, cfg_scale: float | None = 1.0, num_samples: int = 50_000
) -> dict[str, Any]:
    return {
        "features": "inception",
        "reference": f"ImageNet {image_size} training set, statistics of the ADM suite",
        "extractor_sha256": None,
        "reference_sha256": None,
        "num_samples": num_samples,
        "sampler": "ddpm",
        "sampling_steps": SAMPLING_STEPS,
        "cfg_scale": cfg_scale,
        "cfg_channels": None if cfg_scale == 1.0 else 3,
        "ema": True,
        "decoder": decoder,
        "sample_seed": None,
    }


def _row(cell: Cell, step: int, scores: _Scores, protocol: dict[str, Any], where: str) -> Row:
    guided = protocol["cfg_scale"] != 1.0
    return {
        "run": cell.name,
        "study": "paper",
        "block": cell.block,
        "size": cell.size,
        "patch_size": cell.patch_size,
        "seed": None,
        "image_size": cell.image_size,
        "tokens": cell.tokens,
        "params": cell.params_millions * 1_000_000,
        "gflops": cell.gflops,
        "batch_size": BATCH_SIZE,
        "step": step,
        "images_seen": step * BATCH_SIZE,
        "train_gflops": cell.gflops * BATCH_SIZE * step * BACKWARD_FACTOR,
        "sampling_steps": protocol["sampling_steps"],
        "nfe": protocol["sampling_steps"],
        "sampling_gflops": cell.gflops * protocol["sampling_steps"] * (2 if guided else 1),
        "cfg_scale": protocol["cfg_scale"],
        "num_samples": protocol["num_samples"],
        **dict(zip(METRICS, [*scores, *[None] * (len(METRICS) - len(scores))])),
        "protocol": digest(protocol),
        "status": "published",
        "source": SOURCE,
        "reason": None,
        "citation": f"{PAPER} {where}",
    }


def _scored() -> list[tuple[Row, dict[str, Any]]]:
    """Every published score of a DiT with its protocol."""
    found: list[tuple[Row, dict[str, Any]]] = []

    def add(cell: Cell, step: int, scores: _Scores, where: str, **protocol: Any) -> None:
        sampling_steps = protocol.pop("sampling_steps", SAMPLING_STEPS)
        full = {**_protocol(cell.image_size, **protocol), "sampling_steps": sampling_steps}
        found.append((_row(cell, step, scores, full, where), full))

    for cell, fid in zip(CELLS, _FID_400K):
        add(cell, 400_000, (fid,), "Table 4", decoder="ft-mse")
    for cell, step, fid in (
        (_XL2, 2_352_000, 10.67),
        (_XL2, 7_000_000, 9.62),
        (_XL2_512, 1_301_000, 13.78),
        (_XL2_512, 3_000_000, 11.93),
    ):
        add(cell, step, (fid,), "Table 4", decoder="ft-mse")
    for cfg_scale, scores in (
        (1.0, (9.62, 6.85, 121.50, 0.67, 0.67)),
        (1.25, (3.22, 5.28, 201.77, 0.76, 0.62)),
        (1.5, (2.27, 4.60, 278.24, 0.83, 0.57)),
    ):
        add(_XL2, 7_000_000, scores, "Table 2", decoder="ft-ema", cfg_scale=cfg_scale)
    add(_XL2, 2_352_000, (2.55,), "Sec. 5.1", decoder="ft-ema", cfg_scale=1.5)
    for cfg_scale, scores in (
        (1.0, (12.03, 7.12, 105.25, 0.75, 0.64)),
        (1.25, (4.64, 5.77, 174.77, 0.81, 0.57)),
        (1.5, (3.04, 5.02, 240.82, 0.84, 0.54)),
    ):
        add(_XL2_512, 3_000_000, scores, "Table 3", decoder="ft-ema", cfg_scale=cfg_scale)
    for decoder, scores in (
        ("original", (2.46, 5.18, 271.56, 0.82, 0.57)),
        ("ft-mse", (2.30, 4.73, 276.09, 0.83, 0.57)),
        ("ft-ema", (2.27, 4.60, 278.24, 0.83, 0.57)),
    ):
        add(_XL2, 7_000_000, scores, "Table 5", decoder=decoder, cfg_scale=1.5)
    for cell, sampling_steps, fid in ((_L2, 1000, 25.9), (_XL2, 128, 23.7)):  # FID-10K
        add(
            cell,
            400_000,
            (fid,),
            "Sec. 5, Fig. 10",
            decoder="ft-mse",
            num_samples=10_000,
            sampling_steps=sampling_steps,
        )
    return found


# Tables 2 and 3 (scores) and 6 (Gflops; only the diffusion models have them): name, Gflops, guidance, scores.
_BASELINES: dict[int, tuple[tuple[str, float | None, str | None, _Scores], ...]] = {
    256: (
        ("BigGAN-deep", None, None, (6.95, 7.36, 171.4, 0.87, 0.28)),
        ("StyleGAN-XL", None, None, (2.30, 4.02, 265.12, 0.78, 0.53)),
        ("ADM", 1120.0, None, (10.94, 6.02, 100.98, 0.69, 0.63)),
        ("ADM-U", 742.0, None, (7.49, 5.13, 127.49, 0.72, 0.63)),
        ("ADM-G", 1120.0, "classifier", (4.59, 5.25, 186.70, 0.82, 0.52)),
        ("ADM-G, ADM-U", 742.0, "classifier", (3.94, 6.14, 215.84, 0.83, 0.53)),
        ("CDM", None, None, (4.88, None, 158.71, None, None)),
        ("LDM-8", 57.0, None, (15.51, None, 79.03, 0.65, 0.63)),
        ("LDM-8-G", 57.0, "classifier-free", (7.76, None, 209.52, 0.84, 0.35)),
        ("LDM-4", 104.0, None, (10.56, None, 103.49, 0.71, 0.62)),
        ("LDM-4-G (cfg=1.25)", 104.0, "classifier-free", (3.95, None, 178.22, 0.81, 0.55)),
        ("LDM-4-G (cfg=1.50)", 104.0, "classifier-free", (3.60, None, 247.67, 0.87, 0.48)),
    ),
    512: (
        ("BigGAN-deep", None, None, (8.43, 8.13, 177.90, 0.88, 0.29)),
        ("StyleGAN-XL", None, None, (2.41, 4.06, 267.75, 0.77, 0.52)),
        ("ADM", 1983.0, None, (23.24, 10.19, 58.06, 0.73, 0.60)),
        ("ADM-U", 2813.0, None, (9.96, 5.62, 121.78, 0.75, 0.64)),
        ("ADM-G", 1983.0, "classifier", (7.72, 6.57, 172.71, 0.87, 0.42)),
        ("ADM-G, ADM-U", 2813.0, "classifier", (3.85, 5.86, 221.72, 0.84, 0.53)),
    ),
}


def _baseline(
    image_size: int, name: str, gflops: float | None, guidance: str | None, scores: _Scores
) -> tuple[Row, dict]:
    unsaid = ("sampler", "sampling_steps", "cfg_scale", "cfg_channels", "ema", "decoder")
    protocol = {**_protocol(image_size, None), **dict.fromkeys(unsaid), "method": name, "guidance": guidance}
    table = {256: "Table 2", 512: "Table 3"}[image_size]
    row = {
        "run": name,
        "study": "baselines",
        "image_size": image_size,
        "gflops": gflops,
        "num_samples": protocol["num_samples"],
        **dict(zip(METRICS, scores)),
        "protocol": digest(protocol),
        "status": "published",
        "source": SOURCE,
        "citation": f"{PAPER} {table}" + (", Table 6" if gflops else ""),
    }
    return row, protocol


def rows() -> list[Row]:
    """The published scores of diffusion transformers (Tables 2-5, and the two FID-10K values of Fig. 10 that the text states)."""
    return [row for row, _ in _scored()]


def baselines() -> list[Row]:
    """The published scores of other models (Tables 2 and 3), with their Gflops (Table 6); one multiply-add is one flop."""
    return [_baseline(image_size, *one)[0] for image_size, table in _BASELINES.items() for one in table]


def protocols() -> dict[str, dict[str, Any]]:
    """The protocols of all published rows by the hash in column `protocol`."""
    others = [_baseline(image_size, *one) for image_size, table in _BASELINES.items() for one in table]
    return {row["protocol"]: protocol for row, protocol in [*_scored(), *others]}


def comparison() -> list[Row]:
    """The rows of the right half of Fig. 2: guided models at 256 pixels whose Gflops are known, and the best DiT-XL/2."""
    guided = ("ADM-G", "ADM-G, ADM-U", "LDM-8-G", "LDM-4-G (cfg=1.50)")
    others = [row for row in baselines() if row["image_size"] == 256 and row["run"] in guided]
    return [*others, *(row for row in rows() if row["citation"].endswith("Table 2") and row["cfg_scale"] == 1.5)]
