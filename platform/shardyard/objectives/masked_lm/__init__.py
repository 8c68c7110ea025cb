"""Prediction of hidden tokens."""
