"""One run from its configuration to its rows: train, checkpoint, draw, score."""
