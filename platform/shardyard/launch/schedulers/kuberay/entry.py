"""The entrypoint of a RayJob: runs the job once, however often KubeRay starts it.

    python -m shardyard.launch.schedulers.kuberay.entry JOB_FILE

KubeRay creates a new cluster after any exit code except 0, and cannot be configured to end a job on certain codes. The
run folder records whether the job has ended.
"""

from __future__ import annotations

import sys
from pathlib import Path

from shardyard.errors import EXIT_PREEMPTED, RunFolderError
from shardyard.launch.jobs import entry
from shardyard.launch.jobs.spec import JobSpec, read_spec
from shardyard.tracking.run.folder import RunFolder


def ended_with(spec: JobSpec) -> int | None:
    """The final exit code of a job; None if it must run or continue.

    A run that is submitted again is another job with the same run folder.
    """
    try:
        info = RunFolder(Path(spec["runs_dir"]) / spec["run_id"]).info()
    except RunFolderError:
        return None
    if info.job.get("submitted") != spec["submitted"]:
        return None
    code = info.exit_code
    if code == EXIT_PREEMPTED and spec["policy"]["on_preempted"] == "resume":
        return None
    return code


def main(arguments: list[str]) -> int:
    """Carry out the job; returns its exit code."""
    (job_file,) = arguments
    try:
        before = ended_with(read_spec(Path(job_file)))
    except (OSError, ValueError):
        before = None  # the job's own entry point gives a better message
    if before is not None:
        sys.stderr.write(f"The job has already ended with exit code {before}; it is not run again.\n")
        return before
    return entry.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
