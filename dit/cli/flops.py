"""Count multiply-adds and parameters in closed form, beside the values that the paper publishes.

Without options: the sixteen published models, and the U-Nets that the paper's Table 6 compares them with. With --family: one of those, or
of a ladder of U-Nets, with its components. With --block, --size and --patch-size: one cell with its components. With --grid: every
block, size and patch size. One multiply-add is one flop, for one image and one forward pass, the VAE excluded; `paper_gflops` adds two
operations per token and channel in each block, with which all sixteen published rows agree within 0.01; for a U-Net it is rule H1, one
operation for each element that enters a normalisation, with which all eleven figures of Table 6 come out.
"""

from __future__ import annotations

import argparse

from analysis import published
from analysis.tables import FORMATS, render
from dit.design import flops
from dit.design.config import BLOCKS, DATASETS, LADDERS, DataConfig, Model, ModelConfig, model_config
from dit.design.rows import Row
from dit.design.unet import UNetConfig
from dit.design.unet import flops as unet_flops
from dit.design.unet import models as unet_models
from dit.errors import UserError

_CELL: tuple[str, ...] = ("block", "size", "patch_size", "image_size", "tokens", "params", "gflops", "paper_gflops")
_PUBLISHED = ("published_params_millions", "published_gflops", "residual_gflops")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--family",
        help=f"one U-Net: {', '.join(unet_models.FAMILIES)}, or with --size of a ladder: {', '.join(unet_models.LADDERS)}",
    )
    parser.add_argument("--block", help=f"one cell: {', '.join(BLOCKS)}")
    parser.add_argument("--size", help="one cell: S, B, L or XL")
    parser.add_argument("--patch-size", type=int, help="one cell: a divisor of the model's input")
    parser.add_argument(
        "--image-size", type=int, help="pixels of ImageNet images; the model sees latents of an eighth (default 256)"
    )
    parser.add_argument("--dataset", help=f"count for another data set instead: {', '.join(DATASETS)}")
    parser.add_argument("--ladder", default="dit", help=f"size ladder: {', '.join(LADDERS)} (default dit)")
    parser.add_argument("--grid", action="store_true", help="every block, size and the three usual patch sizes")
    parser.add_argument("--format", choices=FORMATS, default="table", help="(default: table)")
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="same as --format json")


def run(args: argparse.Namespace) -> int:
    """Print the counts to standard output."""
    cell = (args.block, args.size, args.patch_size)
    if args.family:
        rows, columns = _components(_family(args)), ["component", "params", "macs", "gflops"]
    elif args.grid:
        if cell != (None, None, None):
            raise UserError("--grid counts every cell: leave out --block, --size and --patch-size")
        rows, columns = _grid(_data(args), args.ladder), list(_CELL)
    elif cell == (None, None, None):
        if args.image_size or args.dataset or args.ladder != "dit":
            raise UserError(
                "the published table has its own sizes: add --grid, or --block, --size and --patch-size, to count others"
            )
        rows, columns = [*_published(), *_table_6()], [*_CELL, *_PUBLISHED]
    elif None in cell:
        raise UserError("one cell needs --block, --size and --patch-size together")
    else:
        model = model_config(args.block, args.size, args.patch_size, _data(args), args.ladder)
        rows, columns = _components([model]), ["component", "params", "macs", "gflops"]
    print(render(rows, columns, args.format), end="")
    return 0


def _family(args: argparse.Namespace) -> list[Model]:
    """The U-Net that is asked for; a base model and its upsampler of a cascade."""
    if args.grid or args.block or args.patch_size or args.ladder != "dit":
        raise UserError("--family names a U-Net: leave out --grid, --block, --patch-size and --ladder")
    if args.family in unet_models.LADDERS:
        if args.size is None:
            raise UserError(f"--family {args.family} is a ladder: give its --size, S, B, L or XL")
        small = {"unet-nano-8": "digits", "unet-nano-32": "mnist"}.get(args.family)
        data = DATASETS[small] if small and not (args.dataset or args.image_size) else _data(args)
        return [unet_models.unet_config(args.size, data, args.family)]
    if args.size or args.dataset:
        raise UserError(f"--family {args.family} is one published model: leave out --size and --dataset")
    return list(unet_models.published(args.family, args.image_size))


def _data(args: argparse.Namespace) -> DataConfig:
    if args.dataset:
        if args.image_size:
            raise UserError("--dataset sets the image size: leave out --image-size")
        if args.dataset not in DATASETS:
            raise UserError(f"unknown dataset '{args.dataset}': expected one of {', '.join(DATASETS)}")
        return DATASETS[args.dataset]
    image_size = 256 if args.image_size is None else args.image_size
    if image_size < 8 or image_size % 8:
        raise UserError(f"image size {image_size} is not a multiple of 8, by which the VAE divides it: try 256 or 512")
    return DataConfig(f"imagenet{image_size}", image_size, image_size // 8, in_channels=4, num_classes=1000)


def _cell_row(model: ModelConfig, image_size: int) -> Row:
    return {
        "block": model.block,
        "size": model.size,
        "patch_size": model.patch_size,
        "image_size": image_size,
        "tokens": model.tokens,
        "params": flops.params(model),
        "gflops": flops.gflops(model),
        "paper_gflops": flops.gflops(model, paper=True),
    }


def _published() -> list[Row]:
    rows = []
    for cell in published.CELLS:
        model = model_config(cell.block, cell.size, cell.patch_size, DATASETS[f"imagenet{cell.image_size}"])
        row = _cell_row(model, cell.image_size)
        row["published_params_millions"] = cell.params_millions
        row["published_gflops"] = cell.gflops
        row["residual_gflops"] = row["paper_gflops"] - cell.gflops
        rows.append(row)
    return rows


def _table_6() -> list[Row]:
    rows = []
    for name, printed in unet_models.TABLE_6.items():
        models = [unet_models.PUBLISHED[one] for one in unet_models.CASCADES.get(name, (name,))]
        gflops = unet_models.paper_gflops(models)
        rows.append(
            {
                "block": "unet",
                "size": name,
                "patch_size": None,
                "image_size": unet_models.IMAGE_SIZES[name],
                "tokens": models[-1].tokens,
                "params": sum(unet_flops.published_params(model) for model in models),
                "gflops": sum(flops.gflops(model) for model in models),
                "paper_gflops": gflops,
                "published_params_millions": None,
                "published_gflops": printed,
                "residual_gflops": gflops - printed,
            }
        )
    return rows


def _grid(data: DataConfig, ladder: str) -> list[Row]:
    if ladder not in LADDERS:
        raise UserError(f"unknown ladder '{ladder}': expected one of {', '.join(LADDERS)}")
    largest = 8 if data.input_size >= 32 else max(4, data.input_size // 2)
    patches = [patch for patch in (largest, largest // 2, largest // 4) if data.input_size % patch == 0]
    return [
        _cell_row(model_config(block, size, patch, data, ladder), data.image_size)
        for block in BLOCKS
        for size in LADDERS[ladder]
        for patch in patches
    ]


def _components(models: list[Model]) -> list[Row]:
    """Each part, of a cascade with its model's name; a published class embedder is told, and not summed, as its authors do."""
    parts = [
        {
            "component": f"{model.size}: {name}" if len(models) > 1 else name,
            "params": part.params,
            "macs": part.macs,
            "gflops": part.macs / 1e9,
        }
        for model in models
        for name, part in flops.components(model).items()
    ]
    params = sum(
        unet_flops.published_params(model)
        if isinstance(model, UNetConfig) and model.ladder == "published"
        else flops.params(model)
        for model in models
    )
    macs, paper = sum(map(flops.macs, models)), sum(flops.gflops(model, paper=True) for model in models)
    total = {"component": "total", "params": params, "macs": macs, "gflops": macs / 1e9}
    rule = "paper mode" if models[0].block != "unet" else "rule H1"
    return [*parts, total, {"component": f"total, {rule}", "params": params, "macs": None, "gflops": paper}]
