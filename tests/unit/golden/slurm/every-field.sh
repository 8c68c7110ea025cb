#!/bin/bash
# first-20260102-030405-6789 on 4 nodes, as `shardyard submit --on slurm` submits it. Submitted again, it goes on with the
# same run: the run folder decides whether that means to launch or to resume.
#
# by hand   mkdir -p /shared/runs/first-20260102-030405-6789/logs && sbatch THIS-FILE
# watch     tail -f /shared/runs/first-20260102-030405-6789/logs/slurm.log
# stop      scancel --batch --signal=TERM JOB: ends with a checkpoint, however long that takes; `scancel JOB`
#           gives it KillWait seconds for that (`scontrol show config | grep KillWait`)
#SBATCH --job-name=gpt2-124m
#SBATCH --comment="shardyard /shared/runs/first-20260102-030405-6789"
#SBATCH --chdir=/shared/recipes
#SBATCH --output=/shared/runs/first-20260102-030405-6789/logs/slurm.log
#SBATCH --open-mode=append
#SBATCH --partition=gpu
#SBATCH --account=nlp
#SBATCH --qos=urgent
#SBATCH --constraint="a100&ib"
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=24
#SBATCH --gpus-per-node=4
#SBATCH --mem=37G
#SBATCH --time=0-01:36
#SBATCH --signal=B:TERM@300
#SBATCH --no-requeue
#SBATCH --mail-type=END
#SBATCH --exclude=node7

# shellcheck disable=SC2016,SC2089,SC2090,SC2317 # shells on the nodes are given functions as text, by name
setup() { # on each node, before anything else
  module load cuda/12.8
  ulimit -l unlimited
}

run=/shared/runs/first-20260102-030405-6789
python=/opt/shardyard/bin/python # the same on every node
entry=(/opt/shardyard/bin/python -m shardyard.launch.jobs.entry /shared/runs/first-20260102-030405-6789/slurm/job.json)
cpus=24 gpus=4 # of each node
object_store=1073741824 # 1.0 GiB; training passes little through it
signal_seconds=300
retries=0 on_failed=resume on_timeout=end on_preempted=end

job_file() { # the run, for shardyard.launch.jobs.entry
  cat <<'END_OF_JOB_FILE'
{"run_id": "first",
"policy": {"on_timeout": "end"},
"recipe_text": "it's $HOME `x` \\n'\nEND_OF_JOB_FILE\n"}
END_OF_JOB_FILE
}

