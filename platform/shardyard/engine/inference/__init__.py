"""Using trained models: sampling, evaluation, lm-eval, and the documents of a step."""
