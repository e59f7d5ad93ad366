#!/usr/bin/env bash
# One fine-tuning run on several nodes of a SLURM cluster:
#
#   sbatch --nodes=4 examples/slurm_multi_node.sh my.yaml [--learning_rate 1e-4 ...]
#
# Files are shared by the nodes: this repository, the data, output_dir. One launcher runs on each node; they find each
# other at a port of the first one.
#
# Change the #SBATCH lines to your cluster, or give them to sbatch, where they win: sbatch --gres=gpu:8 ...
# On CPU nodes: sbatch --gres=none examples/slurm_multi_node.sh my.yaml
#
# Two minutes before the time limit SLURM sends SIGUSR1. The run then finishes its step, saves a checkpoint and ends;
# this script puts the job into the queue again, and there it goes on from that checkpoint, to the same result.
#
# Read from the environment (sbatch hands yours on):
#   SFT_HOME                this repository; default: where sbatch was called
#   SFT_LOG_DIR             folder for one log file a rank; default: slurm-logs/JOB
#   SFT_PROCESSES_PER_NODE  processes where the job has no GPU; default: 1
#   PYTHON                  the interpreter; default: python, after .venv/bin/activate where there is one
#   SFT_PORT                where the nodes find each other; default: a number from the job's
#   SFT_MAX_REQUEUES        how often the job may queue again by itself; default: 50
#SBATCH --job-name=sft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

fail() { echo "slurm_multi_node.sh: $1" >&2; exit 2; }

[ $# -ge 1 ] || fail "usage: sbatch examples/slurm_multi_node.sh my.yaml [--key value ...]"
[ -n "${SLURM_JOB_ID:-}" ] || fail "this is a job for SLURM: sbatch examples/slurm_multi_node.sh $1"
config=$1
shift

# SLURM copies this script away, so the repository is where sbatch was called, unless SFT_HOME says otherwise.
home=${SFT_HOME:-${SLURM_SUBMIT_DIR:-.}}
[ -x "$home/launch_training.sh" ] || fail "there is no launch_training.sh in $home; call sbatch there, or set SFT_HOME"
cd "$home"
[ -f "$config" ] || fail "there is no file $config (from $PWD)"
if [ -f .venv/bin/activate ]; then
  # shellcheck source=/dev/null
  source .venv/bin/activate
fi
python=${PYTHON:-python}
"$python" -c "import torch" 2>/dev/null || fail "$python has no torch on $(hostname); install requirements.txt"
[ "${SLURM_NNODES:-1}" -gt 1 ] || fail "the job has one node; give sbatch --nodes=N, or use examples/slurm_job.sh"

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=${SFT_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
echo "slurm_multi_node.sh: $SLURM_NNODES nodes ($SLURM_JOB_NODELIST), which find each other at $first_node:$port"

# The signal comes to this shell alone (the B above). It passes it on, and remembers that it came ahead of the limit.
signal=""
run=""
# shellcheck disable=SC2329 # the traps below call it
pass_on() {
  signal=$1
  if [ -n "$run" ]; then kill -s USR1 "$run" 2>/dev/null || true; fi
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM # scancel, or pre-emption: saved too, but then SLURM decides whether the job queues again

# On each node as many processes as it has GPUs granted. In the background, for a shell hears no signal while it waits
# in a command. srun passes SIGUSR1 on to the launchers, and ends all of them when one fails.
# shellcheck disable=SC2016 # each node is to fill in its own numbers
srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 bash -c '
  exec ./launch_training.sh --nodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" \
    --gpus "${SLURM_GPUS_ON_NODE:-${SFT_PROCESSES_PER_NODE:-1}}" "$@"' launch \
  --config "$config" --rendezvous "$first_node:$port" \
  --log_dir "${SFT_LOG_DIR:-slurm-logs/$SLURM_JOB_ID}" --resume_from_checkpoint auto "$@" &
run=$!
status=0
wait "$run" || status=$?
while kill -0 "$run" 2>/dev/null; do # a signal ended the wait, not the run
  status=0
  wait "$run" || status=$?
done
if [ -n "$signal" ]; then # that wait's status may have been the signal's
  status=0
  wait "$run" || status=$?
fi

# 130, 138, 143: a signal ended it (128 + its number). 0: it was done. Anything else would go wrong again.
if [ "$signal" = USR1 ] && { [ "$status" = 130 ] || [ "$status" = 138 ] || [ "$status" = 143 ]; }; then
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "${SFT_MAX_REQUEUES:-50}" ]; then
    fail "queued again $SLURM_RESTART_COUNT times, the most that SFT_MAX_REQUEUES allows; submit it again to go on"
  fi
  echo "slurm_multi_node.sh: saved ahead of the time limit; the job queues again to go on"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
