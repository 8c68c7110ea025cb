"""A tiny case of each objective: synthetic data and the fields of a recipe that trains on it."""
