"""A PyTorch adaLN-Zero DiT for counting: same products as ours, attention written out or fused. No initialisation, no labels dropped."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, d: int, heads: int, fused: bool):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1 = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(approximate="tanh"), nn.Linear(4 * d, d))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))

    def attention(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            out = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            out = (q * (d // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(b, t, d))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class TorchDiT(nn.Module):
    """Takes latents (B, 4, I, I), timestep features (B, 256) and labels (B,)."""

    def __init__(self, depth: int, d: int, heads: int, patch: int, size: int = 32, fused: bool = False):
        super().__init__()
        self.patch_size, self.patch = patch, nn.Linear(4 * patch * patch, d)
        self.register_buffer("positions", torch.zeros(1, (size // patch) ** 2, d))
        self.time = nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d))
        self.label = nn.Embedding(1001, d)
        self.blocks = nn.ModuleList(Block(d, heads, fused) for _ in range(depth))
        self.norm = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * d))
        self.out = nn.Linear(d, patch * patch * 8)

    def forward(self, x, features, y):
        patches = x.unfold(2, self.patch_size, self.patch_size).unfold(3, self.patch_size, self.patch_size)
        x = self.patch(patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)) + self.positions
        c = self.time(features) + self.label(y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.out(self.norm(x) * (1 + scale) + shift)
