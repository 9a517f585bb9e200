"""Several processes as one run: joining, agreeing, stopping, and noticing that one hangs."""
