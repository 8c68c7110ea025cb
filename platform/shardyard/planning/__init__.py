"""Numbers that follow from a recipe and a world, computed before anything starts. Pure: no torch, Ray or DeepSpeed."""
