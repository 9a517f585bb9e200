"""Scores of generated images: plain functions over features, moments and probabilities; nothing here knows an extractor."""
