"""The former name of `launch.jobs.driver`, which entry points of older jobs still use."""

import sys

from shardyard.launch.jobs.driver import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
