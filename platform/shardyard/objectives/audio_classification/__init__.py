"""Classification of recordings."""
