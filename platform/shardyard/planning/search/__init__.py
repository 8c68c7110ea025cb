"""Ways to train a recipe that compute the same: tried as plans and forecasts, and compared."""
