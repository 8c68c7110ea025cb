"""The size of a model and the cost of a row, measured without allocating the model."""
