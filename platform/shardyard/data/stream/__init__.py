"""From documents to batches, in an order that no world size changes."""
