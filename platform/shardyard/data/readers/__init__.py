"""Readers: who makes the rows of a rank's streams, in one thread, in several, or in processes."""
