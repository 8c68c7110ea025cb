"""Ray: clusters, worker groups, and what a rank does on a worker."""
