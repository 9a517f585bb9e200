"""The forward process, its losses and its samplers, as plain functions over a callable."""
