"""Multi-label classification: any number of classes for a text."""
