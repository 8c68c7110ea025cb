"""`shardyard cluster`: Ray nodes on this machine and on hosts that join."""
