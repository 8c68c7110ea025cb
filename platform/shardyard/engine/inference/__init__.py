"""Trained models at work: sampling, evaluation, lm-eval, and the documents of a step."""
