"""One thread for each process of the tests, which run beside each other."""

from __future__ import annotations

import os

# Threads of OpenMP and OpenBLAS spin while they wait for each other. With as many of them in every process as there are
# cores, fitting a scaling law took five times as long. What needs threads sets their number itself, as ranks do.
for library in ("OMP", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
