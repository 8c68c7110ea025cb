"""From documents to batches, in an order that no number of ranks changes."""
