"""Tokenizers: specs, training, reports, and loading one for a recipe."""
