"""The training step and loop, the optimizer, checkpoints, and weights from any source."""
