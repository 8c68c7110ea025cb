"""A Slurm of this machine's own: munged, slurmctld and slurmd from Debian, in the test's folder and on free ports."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.cluster import free_port

NODE = "n1"
# `low` is preempted by `high`, at once; `grace` only after some seconds.
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
# Credentials live this long, and a requeued job waits for it.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Two cores may need a while for a checkpoint.
KillWait=120
# Only counted: no job that runs asks for them.
GresTypes=gpu
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=60000 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=grace Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=100
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Slurm:
    """A running Slurm; `environment` makes its commands, and Shardyard, find it."""

    folder: Path
    environment: dict[str, str]

    def command(self, *words: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            words, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr, self.logs())
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """Fields of `scontrol show job`."""
        text = self.command("scontrol", "--oneliner", "show", "job", job_id)
        return dict(part.partition("=")[::2] for part in text.split() if "=" in part)

    def state(self, job_id: str) -> str:
        """PENDING, RUNNING, COMPLETED and so on."""
        return self.job(job_id)["JobState"]

    def release(self, job_id: str) -> None:
        """Start a requeued job now, not when Slurm's pause is over."""
        self.command("scontrol", "update", f"JobId={job_id}", "StartTime=now")

    def wait_for(
        self, condition: Callable[[], object], what: str, *, log: Path | None = None, timeout_seconds: float = 240
    ) -> None:
        """Until `condition` holds; where it never does, the failure shows `log` and what the daemons said."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            late = time.monotonic() > deadline
            assert not late, f"{what} takes too long\n{log.read_text() if log and log.exists() else ''}\n{self.logs()}"
            time.sleep(0.2)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        found = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in found)


@contextmanager
def slurm_cluster(folder: Path, *, cpus: int = 2) -> Iterator[Slurm]:
    """One node that counts `cpus` cores, whatever the machine has; the daemons end with the block."""
    (folder / "state").mkdir(parents=True)
    (folder / f"spool-{NODE}").mkdir()
    folder.chmod(0o755)  # munge looks at the folders above its socket
    _write_key(folder / "munge.key")
    configuration = folder / "slurm.conf"
    ports = {"controller_port": free_port(), "node_port": free_port()}
    configuration.write_text(
        _CONFIGURATION.format(host=socket.gethostname(), folder=folder, node=NODE, cpus=cpus, **ports)
    )
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    slurm = Slurm(folder, {"SLURM_CONF": str(configuration)})
    with ExitStack() as daemons:
        daemons.enter_context(_daemon(folder, *_munged(folder)))
        slurm.wait_for((folder / "munge.socket").exists, "munged", timeout_seconds=20)
        daemons.enter_context(_daemon(folder, "slurmctld", "-D", "-f", str(configuration)))
        daemons.enter_context(_daemon(folder, "slurmd", "-D", "-N", NODE, "-f", str(configuration)))
        slurm.wait_for(lambda: _answers(slurm), "Slurm", timeout_seconds=60)
        try:
            yield slurm
        finally:
            _cancel_everything(slurm)


def _munged(folder: Path) -> list[str]:
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    options = [f"--{name}={folder / file}" for name, file in {**files, "seed-file": "munged.seed"}.items()]
    return ["munged", "--foreground", "--force", "--num-threads=1", *options]


def _write_key(path: Path) -> None:
    path.write_bytes(secrets.token_bytes(1024))
    path.chmod(0o600)


def _answers(slurm: Slurm) -> bool:
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"],
        env={**os.environ, **slurm.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.returncode == 0 and "idle" in done.stdout


def _cancel_everything(slurm: Slurm) -> None:
    """Jobs must not outlive the daemons, which would leave their processes alone."""
    environment = {**os.environ, **slurm.environment}
    subprocess.run(["scancel", "--me", "--full", "--signal=KILL"], env=environment, check=False, timeout=30)
    subprocess.run(["scancel", "--me"], env=environment, check=False, timeout=30)
    slurm.wait_for(
        lambda: not slurm.command("squeue", "--noheader", "--format=%i").strip(),
        "the end of all jobs",
        timeout_seconds=60,
    )


@contextmanager
def _daemon(folder: Path, *command: str) -> Iterator[None]:
    program = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, f"{command[0]} is missing; Debian has it in slurm-wlm and munge"
    with (folder / f"{command[0]}.out").open("w") as output:
        process = subprocess.Popen([program, *command[1:]], stdout=output, stderr=output, start_new_session=True)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
