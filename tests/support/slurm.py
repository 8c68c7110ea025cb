"""A private Slurm for tests: munged, slurmctld and slurmd from Debian, in the test's folder and on free ports."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.cluster import free_port
from support.hosts import Host
from support.waiting import PATIENCE_SECONDS, until

# `low` is preempted by `high`, at once; `grace` only after some seconds.
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={controller_port}
SlurmdPort={node_port}
# Ports of a job's Ray follow from its number, and another Slurm may run jobs at the same time.
FirstJobId={first_job}
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
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=grace Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=100
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Slurm:
    """A running Slurm; `environment` makes its commands, and Shardyard, find it, and `prefix` goes to its network."""

    folder: Path
    environment: dict[str, str]
    prefix: tuple[str, ...]

    def command(self, *words: str) -> str:
        """The output of a Slurm command."""
        done = subprocess.run(
            [*self.prefix, *words],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
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

    def wait_for(self, condition: Callable[[], object], what: str, *, log: Path | None = None) -> None:
        """Wait until `condition` holds; a failure shows `log` and the daemons' logs."""

        def told() -> str:
            return f"{what}\n{log.read_text() if log and log.exists() else ''}\n{self.logs()}"

        until(condition, told, every=0.2)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        found = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in found)


@contextmanager
def slurm_cluster(folder: Path, *, cpus: int = 2, hosts: Sequence[Host] = ()) -> Iterator[Slurm]:
    """The node n1, or n1, n2 and so on, one on each of the hosts; the daemons end with the block.

    Each node counts `cpus` cores, whatever the machine has.
    """
    (folder / "state").mkdir(parents=True)
    folder.chmod(0o755)  # munge looks at the folders above its socket
    _write_key(folder / "munge.key")
    networks = [_network(host) for host in hosts] or [()]
    configuration = folder / "slurm.conf"
    configuration.write_text(_configuration(folder, cpus, [host.address for host in hosts] or ["127.0.0.1"]))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    slurm = Slurm(folder, {"SLURM_CONF": str(configuration)}, networks[0])
    with ExitStack() as daemons:
        daemons.enter_context(_daemon(folder, "munged", *_munged(folder)))
        slurm.wait_for((folder / "munge.socket").exists, "munged")
        options = ("-D", "-f", str(configuration))
        daemons.enter_context(_daemon(folder, "slurmctld", *options, prefix=networks[0]))
        for number, network in enumerate(networks, 1):
            (folder / f"spool-n{number}").mkdir()
            daemons.enter_context(_daemon(folder, "slurmd", "-N", f"n{number}", *options, prefix=network))
        slurm.wait_for(lambda: _nodes_that_answer(slurm) == len(networks), "Slurm")
        try:
            yield slurm
        finally:
            _cancel_everything(slurm)


def _network(host: Host) -> tuple[str, ...]:
    # `ip netns exec` would hide the control groups, which slurmd wants to see.
    return ("nsenter", f"--net=/run/netns/{host.namespace}")


def _configuration(folder: Path, cpus: int, addresses: Sequence[str]) -> str:
    host = socket.gethostname()
    # The names of hosts must differ; only that of the controller is looked at.
    nodes = [
        f"NodeName=n{number} NodeHostname={host}{'' if number == 1 else number} NodeAddr={address} CPUs={cpus} "
        "RealMemory=60000 Gres=gpu:2 State=UNKNOWN"
        for number, address in enumerate(addresses, 1)
    ]
    first_job = 1 + secrets.randbelow(60_000)
    ports = {"controller_port": free_port(), "node_port": free_port()}
    return _CONFIGURATION.format(
        host=host, address=addresses[0], folder=folder, nodes="\n".join(nodes), **ports, first_job=first_job
    )


def _munged(folder: Path) -> list[str]:
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    options = [f"--{name}={folder / file}" for name, file in {**files, "seed-file": "munged.seed"}.items()]
    return ["--foreground", "--force", "--num-threads=1", *options]


def _write_key(path: Path) -> None:
    path.write_bytes(secrets.token_bytes(1024))
    path.chmod(0o600)


def _nodes_that_answer(slurm: Slurm) -> int:
    done = subprocess.run(
        [*slurm.prefix, "sinfo", "--noheader", "--Node", "--partition=low", "--format=%T"],
        env={**os.environ, **slurm.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    return done.stdout.split().count("idle")


def _cancel_everything(slurm: Slurm) -> None:
    """Cancel all jobs: they must not outlive the daemons, which would leave their processes running."""
    environment = {**os.environ, **slurm.environment}
    for options in (["--full", "--signal=KILL"], []):
        subprocess.run(
            [*slurm.prefix, "scancel", "--me", *options], env=environment, check=False, timeout=PATIENCE_SECONDS
        )
    slurm.wait_for(
        lambda: not slurm.command("squeue", "--noheader", "--format=%i").strip(),
        "the end of all jobs",
    )


@contextmanager
def _daemon(folder: Path, name: str, *options: str, prefix: Sequence[str] = ()) -> Iterator[None]:
    program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, f"{name} is missing; Debian has it in slurm-wlm and munge"
    with (folder / f"{name}.out").open("a") as output:
        process = subprocess.Popen([*prefix, program, *options], stdout=output, stderr=output, start_new_session=True)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
