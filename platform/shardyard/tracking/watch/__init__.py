"""Watching the ranks of a run from outside: what each writes about itself, and what follows from it."""
