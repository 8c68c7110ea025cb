"""`shardyard doctor`: diagnosing this machine."""
