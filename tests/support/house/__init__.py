"""The package seen from outside: what its modules hold, in numbers."""
