"""Step records, the run folder, Weights & Biases, meters of throughput and memory."""
