"""From YAML to a strict recipe, its plan and the DeepSpeed configuration. Pure: no torch, Ray or DeepSpeed."""
