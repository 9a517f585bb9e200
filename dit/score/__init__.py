"""Samples and what they are worth: drawing, features, metrics, references."""
