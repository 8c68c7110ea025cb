"""Ray: clusters, worker groups, and the work of a rank on a worker."""
