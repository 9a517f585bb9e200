"""Design-space ablations and scaling-law studies of diffusion transformers (DiT, arXiv:2212.09748), in JAX."""

__version__ = "0.1.0"
