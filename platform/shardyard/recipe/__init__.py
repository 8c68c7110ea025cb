"""From YAML to a strict recipe. Pure: no torch, Ray or DeepSpeed."""
