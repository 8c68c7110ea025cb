"""Static analysis of the package: figures about its modules."""
