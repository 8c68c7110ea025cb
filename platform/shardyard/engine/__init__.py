"""One training run on one rank: assembly, the loop, one step, checkpoints, evaluation. The room of DeepSpeed."""
