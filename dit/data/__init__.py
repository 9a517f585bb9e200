"""Images and latents: reading, cropping, encoding, sharding, and batches that are a function of (seed, step)."""
