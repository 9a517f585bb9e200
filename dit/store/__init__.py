"""What a study leaves on disk, and who may write it. Imports no JAX."""
