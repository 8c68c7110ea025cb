"""BERT's pretraining: hidden tokens and next sentences."""
