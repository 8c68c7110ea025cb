"""Masked autoencoding of images."""
