"""Ray's job server."""
