#!/usr/bin/env bash
# One fine-tuning run on one node of a SLURM cluster:
#
#   sbatch examples/slurm_job.sh my.yaml [--learning_rate 1e-4 ...]
#
# Adapt the #SBATCH lines to your cluster, or pass the options to sbatch, which override them: sbatch --gres=gpu:8 ...
# On CPU nodes: sbatch --gres=none examples/slurm_job.sh my.yaml
#
# Two minutes before the time limit, SLURM sends SIGUSR1. The run finishes its step, saves a checkpoint and exits. This
# script then requeues the job, which resumes from that checkpoint and ends with the same result.
#
# Environment variables (sbatch passes yours on):
#   SFT_HOME                this repository; default: the folder in which sbatch was called
#   SFT_LOG_DIR             folder for one log file per rank; default: slurm-logs/JOB
#   SFT_PROCESSES_PER_NODE  number of processes if the job has no GPU; default: 1
#   PYTHON                  the interpreter; default: python, after .venv/bin/activate if that exists
#   SFT_MAX_REQUEUES        how often the script may requeue the job; default: 50
#SBATCH --job-name=sft
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

fail() { echo "slurm_job.sh: $1" >&2; exit 2; }

[ $# -ge 1 ] || fail "usage: sbatch examples/slurm_job.sh my.yaml [--key value ...]"
[ -n "${SLURM_JOB_ID:-}" ] || fail "this script is a SLURM job: sbatch examples/slurm_job.sh $1"
config=$1
shift

# SLURM runs a copy of this script, so the repository is the folder in which sbatch was called, unless SFT_HOME is set.
home=${SFT_HOME:-${SLURM_SUBMIT_DIR:-.}}
[ -x "$home/launch_training.sh" ] ||
  fail "there is no launch_training.sh in $home; call sbatch in the repository, or set SFT_HOME"
cd "$home"
[ -f "$config" ] || fail "the file $config does not exist (in $PWD)"
if [ -f .venv/bin/activate ]; then
  # shellcheck source=/dev/null
  source .venv/bin/activate
fi
python=${PYTHON:-python}
"$python" -c "import torch" 2>/dev/null || fail "$python on $(hostname) has no torch; install requirements.txt"

# Only this shell receives the signal (the B above). It forwards the signal and records which one it was.
signal=""
run=""
# shellcheck disable=SC2329 # called by the traps below
forward() {
  signal=$1
  if [ -n "$run" ]; then kill -s USR1 "$run" 2>/dev/null || true; fi
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM # scancel or preemption: the run saves too, but SLURM decides whether the job is requeued

# One process per allocated GPU. In the background: a shell handles no signal while it waits for a foreground command.
./launch_training.sh --config "$config" --gpus "${SLURM_GPUS_ON_NODE:-${SFT_PROCESSES_PER_NODE:-1}}" \
  --log_dir "${SFT_LOG_DIR:-slurm-logs/$SLURM_JOB_ID}" --resume_from_checkpoint auto "$@" &
run=$!
status=0
wait "$run" || status=$?
while kill -0 "$run" 2>/dev/null; do # a signal interrupted wait; the run continues
  status=0
  wait "$run" || status=$?
done
if [ -n "$signal" ]; then # the status may be that of the interrupted wait
  status=0
  wait "$run" || status=$?
fi

# 130, 138, 143: ended by a signal (128 + its number). 0: completed. Any other status would occur again after a requeue.
if [ "$signal" = USR1 ] && { [ "$status" = 130 ] || [ "$status" = 138 ] || [ "$status" = 143 ]; }; then
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "${SFT_MAX_REQUEUES:-50}" ]; then
    fail "requeued $SLURM_RESTART_COUNT times, the maximum (SFT_MAX_REQUEUES); submit the job again to resume"
  fi
  echo "slurm_job.sh: saved before the time limit; requeueing the job to resume"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
