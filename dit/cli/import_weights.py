"""Read official DiT, ADM or latent diffusion weights into a checkpoint.

    dit import DiT-XL-2-256x256.pt --out dit-xl-2-256

FILE is the released .pt or .ckpt (read without PyTorch, and without running anything it says), a .safetensors of the same names, or a
diffusers folder or file. The model is read off its tensors; one that is missing, extra or of another shape is named, and nothing is
written.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add = parser.add_argument
    add(
        "file",
        type=Path,
        metavar="FILE",
        help="official file of a DiT or U-Net (.pt, .ckpt, .safetensors), or a diffusers folder or file",
    )
    add("--out", type=Path, required=True, help="folder for the checkpoint; must not be there yet")
    add("--num-heads", type=int, help="attention heads, where the width is none of the paper's")
    add("--head-channels", type=int, help="channels of an attention head, of a U-Net of no published shape")
    add("--input-size", type=int, help="side of the model's input, where the file has no pos_embed (32 for 256 px)")
    add("--num-classes", type=int, help="classes, where the last row of labels is not the null label")
    add("--key", help="which part of FILE to take, such as ema or model (default: its averaged weights)")


def run(args: argparse.Namespace) -> None:
    """Import; what was found on standard output."""
    from dit.design.flops import gflops, params
    from dit.design.unet import UNetConfig
    from dit.train.restore import Declared, read_official, refuse_existing, save_imported

    refuse_existing(args.out)
    loaded = read_official(
        args.file, Declared(args.num_heads, args.input_size, args.num_classes, args.key, args.head_channels)
    )
    save_imported(loaded, args.out)
    model = loaded.model
    if isinstance(model, UNetConfig):
        name = model.size if model.ladder == "published" else f"a U-Net of {len(model.channels)} levels"
        told = f"{name}, channels {', '.join(map(str, model.channels))}"
    else:
        name = f"DiT-{model.size}/{model.patch_size}" if model.ladder == "dit" else f"a DiT of {model.depth} layers"
        told = f"{name}, width {model.hidden_size}, {model.num_heads} heads"
    print(loaded.note)
    print(f"{args.out}: {told}, {params(model):,} parameters, {gflops(model):.2f} Gflops")
    print(f"input {model.input_size}x{model.input_size}x{model.in_channels}, {model.num_classes} classes")
