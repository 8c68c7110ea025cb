"""The former name of `launch.jobs.driver`, by which entry points of jobs that were submitted before start it."""

import sys

from shardyard.launch.jobs.driver import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
