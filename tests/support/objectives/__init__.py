"""Each objective in small: made-up data and the fields of a recipe that trains on it."""
