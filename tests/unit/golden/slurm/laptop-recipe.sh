#!/bin/bash
# first-20260102-030405-6789 on 1 node, as `shardyard submit --on slurm` submits it. Submitted again, it goes on with the
# same run: the run folder decides whether that means to launch or to resume.
#
# by hand   mkdir -p /shared/runs/first-20260102-030405-6789/logs && sbatch THIS-FILE
# watch     tail -f /shared/runs/first-20260102-030405-6789/logs/slurm.log
# stop      scancel --batch --signal=TERM JOB: ends with a checkpoint, however long that takes; `scancel JOB`
#           gives it KillWait seconds for that (`scontrol show config | grep KillWait`)
#SBATCH --job-name=gpt-quickstart
#SBATCH --comment="shardyard /shared/runs/first-20260102-030405-6789"
#SBATCH --chdir=/shared/recipes
#SBATCH --output=/shared/runs/first-20260102-030405-6789/logs/slurm.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=16G
#SBATCH --signal=B:TERM@120
#SBATCH --requeue

# shellcheck disable=SC2016,SC2089,SC2090,SC2317 # shells on the nodes are given functions as text, by name
setup() { # on each node, before anything else
  :
}

run=/shared/runs/first-20260102-030405-6789
python=/opt/shardyard/bin/python # the same on every node
entry=(/opt/shardyard/bin/python -m shardyard.launch.jobs.entry /shared/runs/first-20260102-030405-6789/slurm/job.json)
cpus=2 gpus=0 # of each node
object_store=1073741824 # 1.0 GiB; training passes little through it
signal_seconds=120
retries=0 on_failed=end on_timeout=end on_preempted=resume

job_file() { # the run, for shardyard.launch.jobs.entry
  cat <<'END_OF_JOB_FILE'
{"run_id": "first",
"policy": {"on_timeout": "end"},
"recipe_text": "it's $HOME `x` \\n'\nEND_OF_JOB_FILE\n"}
END_OF_JOB_FILE
}

