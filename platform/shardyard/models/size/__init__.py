"""The size of a model, measured without allocating it, and what a row costs."""
