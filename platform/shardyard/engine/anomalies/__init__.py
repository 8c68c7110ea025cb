"""Batches that are not finite, spikes, and replicas that differ: finding them, and what follows."""
