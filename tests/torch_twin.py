"""A PyTorch adaLN-Zero DiT for counting and for comparing speed: same products as ours, attention written out or fused."""

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


class TorchTraining:
    """The training step and the ancestral sampler on 32×32×4 latents in plain PyTorch: hybrid loss, AdamW, moving average.

    The default is S. On a GPU AdamW is fused; `bfloat16` is that of autocast, with float32 parameters. `compiled` compiles the model.
    """

    def __init__(self, patch, compiled, depth=12, d=384, heads=6, device="cpu", bfloat16=False):
        torch.manual_seed(0)
        self.device, self.autocast = torch.device(device), torch.autocast(device, torch.bfloat16, enabled=bfloat16)
        self.model = TorchDiT(depth, d, heads, patch, fused=True).to(self.device)
        self.ema = [p.detach().clone() for p in self.model.parameters()]
        fused = {"fused": True} if self.device.type == "cuda" else {}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.0, **fused)
        self.apply = torch.compile(self.model) if compiled else self.model
        betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
        acp = (1 - betas).cumprod(0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), acp[:-1]])
        variance = betas * (1 - previous) / (1 - acp)
        columns = {
            "signal": acp.sqrt(),
            "noise": (1 - acp).sqrt(),
            "log_betas": betas.log(),
            "log_variance": torch.cat([variance[1:2], variance[1:]]).log(),
            "of_start": betas * previous.sqrt() / (1 - acp),
            "of_noisy": (1 - previous) * (1 - betas).sqrt() / (1 - acp),
        }
        self.table = {name: column.float()[:, None, None, None].to(self.device) for name, column in columns.items()}
        self.frequencies = torch.exp(-torch.arange(128) * (9.210340371976184 / 128)).to(self.device)

    def features(self, t):
        angles = t[:, None].float() * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    def predict(self, x, t, y):
        """Noise and log-variance weight as images (B, 4, 32, 32)."""
        patch, grid = self.model.patch_size, 32 // self.model.patch_size
        with self.autocast:
            tokens = self.apply(x, self.features(t), y).float()
        out = tokens.reshape(len(x), grid, grid, patch, patch, 8).permute(0, 5, 1, 3, 2, 4).reshape(len(x), 8, 32, 32)
        return out.chunk(2, dim=1)

    def posterior(self, x, start, weight, t):
        table = {name: column[t] for name, column in self.table.items()}
        mean = table["of_start"] * start + table["of_noisy"] * x
        fraction = (weight + 1) / 2
        return mean, fraction * table["log_betas"] + (1 - fraction) * table["log_variance"], table["log_variance"]

    def step(self, images, labels):
        t = torch.randint(0, 1000, (len(images),), device=self.device)
        noise = torch.randn_like(images)
        labels = torch.where(torch.rand(len(images), device=self.device) < 0.1, 1000, labels)
        x = self.table["signal"][t] * images + self.table["noise"][t] * noise
        epsilon, weight = self.predict(x, t, labels)
        start = (x - self.table["noise"][t] * epsilon.detach()) / self.table["signal"][t]
        mean, log_variance, _ = self.posterior(x, start, weight, t)
        true_mean, _, true = self.posterior(x, images, weight.detach(), t)
        kl = 0.5 * (
            -1 + log_variance - true + (true - log_variance).exp() + (true_mean - mean) ** 2 * (-log_variance).exp()
        )
        loss = ((noise - epsilon) ** 2).mean() + kl.mean() / 0.6931471805599453
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(self.ema, 0.9999)
            torch._foreach_add_(self.ema, list(self.model.parameters()), alpha=1e-4)

    @torch.no_grad()
    def sample(self, count, steps):
        x = torch.randn(count, 4, 32, 32, device=self.device)
        y = torch.randint(0, 1000, (count,), device=self.device)
        for index in torch.linspace(999, 0, steps).round().long().to(self.device):
            t = index.repeat(count)
            epsilon, weight = self.predict(x, t, y)
            start = (x - self.table["noise"][t] * epsilon) / self.table["signal"][t]
            mean, log_variance, _ = self.posterior(x, start, weight, t)
            x = mean + (index > 0) * (0.5 * log_variance).exp() * torch.randn_like(x)
        return x
