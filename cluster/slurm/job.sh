# What follows is the same in every job; `cluster/slurm/job.sh` has it. Above is what this job differs in.
# It runs from top to bottom on the first node, and starts one Ray node on each of the allocation through srun.

attempt=${SLURM_RESTART_COUNT:-0} # how often Slurm has requeued this job
state=$run/slurm                  # what the parts of the job tell each other, on storage that all nodes see
ended=$state/ended-$attempt       # the run's exit code, once it has ended
asked=$state/asked-$attempt       # there once the run is to write a checkpoint and end
asked_by=                         # slurm, preemption, limit or person
token=$state/token                # without it nobody can use this Ray

field() { # NAME: a field of what Slurm says of this job
  scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null | grep -oE "(^| )$1=[^ ]*" | head -n1 | cut -d= -f2-
}

# Who wants the run to end, and so what comes next.
who_asks() {
  local end
  end=$(date -d "$(field EndTime)" +%s 2>/dev/null || echo 0)
  if [[ $(field JobState) != RUNNING ]]; then
    echo slurm # which ends this job itself, by scancel or to requeue it
  elif [[ $(field PreemptTime) == 2* ]]; then
    echo preemption # with a grace time, which is running now
  elif ((end && end - $(date +%s) <= signal_seconds + 90)); then
    echo limit
  else
    echo person
  fi
}

# SIGTERM comes to this script signal_seconds before the time limit, by `scontrol requeue`, `scancel` and preemptions. The
# run hears of it through a file, so that needs neither Slurm nor the network.
on_term() {
  touch "$asked"
  asked_by=$(who_asks)
  say "asked to end ($asked_by); writing a checkpoint"
}

say() { echo "$(date '+%F %T') slurm: $*"; }

listening() { # PORT: whether somebody on this node listens there
  (exec 3<>"/dev/tcp/$head/$1") 2>/dev/null
}

# The address at which other nodes reach this one; a single node keeps its Ray to itself.
own_address() {
  if ((SLURM_JOB_NUM_NODES == 1)); then
    echo 127.0.0.1
    return
  fi
  local name address
  name=$(scontrol --oneliner show node "$SLURMD_NODENAME" | grep -oE 'NodeAddr=[^ ]*' | cut -d= -f2)
  address=$(getent ahostsv4 "$name" | awk '$1 !~ /^127\./ { print $1; exit }')
  echo "${address:-$(hostname -I | cut -d' ' -f1)}"
}

# Become a command that has SIGTERM blocked or unblocked. Slurm sends SIGTERM to every process of a job that it requeues or
# cancels. Ray's processes and the ranks must not hear it, or there is nothing left to write a checkpoint with.
with_sigterm() { # BLOCK|UNBLOCK COMMAND…
  exec "$python" -c 'import os, signal, sys
signal.pthread_sigmask(getattr(signal, "SIG_" + sys.argv[1]), {signal.SIGTERM})
os.execvp(sys.argv[2], sys.argv[2:])' "$@"
}

# On each node, as the task of srun. Ray's commands take all Ray processes that they see for theirs: symmetric-run starts
# none beside another, and stops all. So each job gets process ids of its own, where the kernel lets users have them.
on_each_node() {
  local code=0 alone=(unshare --user --map-current-user --pid --fork --mount-proc --kill-child)
  setup
  temp=$(mktemp -d "/tmp/ray-$SLURM_JOB_ID.XXXXXX") || return # short, because it holds sockets
  if ! "${alone[@]}" true 2>/dev/null; then
    say "$SLURMD_NODENAME has no user namespaces, so no other Ray may run on it (cluster.slurm.exclusive)"
    alone=(setsid --wait)
  fi
  export temp
  "${alone[@]}" bash -c "$shell" - ray_node || code=$?
  if [[ ${alone[0]} == setsid ]]; then # without the kernel's help: this job's processes, then Ray's daemons
    pkill -KILL --session "$(<"$temp/leader")"
    pkill -KILL -u "$UID" -f "$temp/session"
  fi
  case $code in
    0 | 124 | 130 | 143) ;;
    *) cp -r "$temp/session_latest/logs" "$run/logs/ray-$SLURMD_NODENAME-$attempt" 2>/dev/null ;;
  esac
  rm -rf "$temp"
  return "$code"
}

# This node's part of Ray, until the run has ended. Ports that are 0 are chosen by the kernel.
ray_node() {
  local options=(--num-cpus="$cpus" --num-gpus="$gpus" --object-store-memory="$object_store" --temp-dir="$temp"
    --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 --ray-client-server-port=$((port + 1))
    --disable-usage-stats)
  echo $$ >"$temp/leader"
  ((SLURM_PROCID == 0)) && options+=(--include-dashboard=false)
  ray symmetric-run --address="$head:$port" --min-nodes="$SLURM_JOB_NUM_NODES" "${options[@]}" \
    -- bash -c "$shell" - on_the_head &
  while [[ ! -e $ended ]] && kill -0 $! 2>/dev/null; do
    if [[ $SLURM_PROCID == 0 && -e $asked && -e $state/pid ]]; then
      kill -TERM "$(<"$state/pid")" 2>/dev/null
      rm -f "$state/pid" # once is enough
    fi
    sleep 1
  done
  # symmetric-run ends with 0 when Ray could not be started, so its exit code says nothing.
  [[ -e $ended ]] && return "$(<"$ended")"
  say "Ray did not start on $SLURMD_NODENAME; its logs are in $run/logs/ray-$SLURMD_NODENAME-$attempt"
  return 1
}

# The run itself, once Ray is up on all nodes.
on_the_head() {
  local code=143
  if [[ ! -e $asked ]]; then
    with_sigterm UNBLOCK "${entry[@]}" &
    echo $! >"$state/pid"
    wait $!
    code=$?
  fi
  echo "$code" >"$ended.part" && mv "$ended.part" "$ended" # other nodes see all of it or nothing
  sleep infinity                                         # the nodes end now, and Ray with them
}

# Requeue this job if the recipe wants it to go on after such an end.
go_on() { # EXIT CODE
  local policy=end retried
  [[ $asked_by == slurm || $asked_by == person ]] && return
  case $1 in
    1) [[ -e $ended ]] || policy=$on_failed ;; # Ray did not start; what the run does after its own failures is done
    124) policy=$on_timeout ;;
    143) policy=$on_preempted ;;
  esac
  [[ $policy == resume ]] || return
  retried=$(cat "$state/retried" 2>/dev/null || echo 0)
  if [[ $asked_by != preemption ]]; then
    ((retried < retries)) || return
    echo $((retried + 1)) >"$state/retried"
  fi
  say "exit code $1; the job goes back to the queue and will resume"
  trap '' TERM # which requeueing sends to this script too
  scontrol update JobId="$SLURM_JOB_ID" Requeue=1
  scontrol requeue "$SLURM_JOB_ID"
}

mkdir -p "$run/logs" "$state" && chmod 700 "$state" || exit
rm -f "$state"/ended-* "$state"/asked-* "$state/pid"
trap on_term TERM
job_file >"$state/job.json" || exit
[[ $on_preempted == end ]] && scontrol update JobId="$SLURM_JOB_ID" Requeue=0 # as after an end that it goes on from
(umask 077 && "$python" -c 'import secrets; print(secrets.token_hex(32))' >"$token") || exit

head=$(own_address)
# Different for each job; the second port is that of Ray's client server.
port=$((20000 + SLURM_JOB_ID % 5000 * 2))
while listening "$port" || listening $((port + 1)); do port=$((port + 2)); done
say "job $SLURM_JOB_ID, attempt $((attempt + 1)), on $SLURM_JOB_NODELIST; Ray at $head:$port"

PATH=$(dirname "$python"):$PATH
unset RAY_AUTH_TOKEN # it would win over the file
export PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_ADDRESS=$head:$port
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600 # seconds; nodes boot at different speeds

# `bash -c "$shell" - NAME` runs a function of this script in a shell of its own, on any node.
everything="$(declare -f); $(declare -p run python entry cpus gpus object_store attempt state ended asked head port)"
shell='eval "$everything"; "$@"'
export everything shell

srun --export=ALL --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$cpus" --wait=60 \
  bash -c "$shell" - with_sigterm BLOCK bash -c "$shell" - on_each_node &
nodes=$!
while kill -0 "$nodes" 2>/dev/null; do
  wait "$nodes" # returns early at a signal
  code=$?
done
rm -f "$token"
[[ -e $ended ]] && code=$(<"$ended")
# Before a preemption with a grace time, Slurm tells the run and not this script.
[[ $code == 143 && -z $asked_by ]] && asked_by=$(who_asks)
[[ $code == 143 && $asked_by == limit ]] && code=124
say "ended with exit code $code"
go_on "$code"
exit "$code"
