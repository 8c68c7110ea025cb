"""Memory that a rank really allocates, beside what its plan expects."""
