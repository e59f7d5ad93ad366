#!/usr/bin/env bash
# Train on several GPUs of one machine, or of several machines.
#
#   ./launch_training.sh --config my.yaml [options] [--learning_rate 1e-4 ...]
#
#   --gpus N                number of GPUs (processes) on this machine; default: all of its GPUs.
#                           Without a GPU, N processes run on CPU, and N is required.
#   --nodes N               number of machines; start this command on each of them
#   --node_rank R           rank of this machine, from 0
#   --rendezvous HOST:PORT  host name of node 0 and a free port on it, the same on all machines
#   --max_restarts N        if a process dies, restart all of them from the newest checkpoint, at most N times
#   --log_dir DIR           write one log file per rank: DIR/rank-0.log, DIR/rank-1.log, ...
#   --dry_run               do everything up to the first step, in one process, and show what a run would do
#   --help                  show this text
#
# On one machine a free port is chosen automatically. All other options are settings, as for sft_main.py.
# The environment variable PYTHON selects the interpreter (default: python, else python3).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$(command -v python || echo python3)}
config=""
gpus=""
dry_run=""
arguments=()

usage() { sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p'; }
fail() { echo "launch_training.sh: $1" >&2; exit 2; }

# The GPUs that are visible to this process: a scheduler may hide some.
count_gpus() {
  local visible=${CUDA_VISIBLE_DEVICES-all}
  if [ "$visible" != all ]; then
    visible=${visible// /}
    case "$visible" in "" | -1 | NoDevFiles) echo 0 ;; *) echo "$visible" | tr ',' '\n' | grep -c . || true ;; esac
  else
    nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true
  fi
}

while [ $# -gt 0 ]; do
  case "$1" in
    --config | --config_file | --gpus | --num_gpus)
      if [ $# -lt 2 ]; then fail "$1 needs a value"; fi
      case "$1" in --gpus | --num_gpus) gpus=$2 ;; *) config=$2 ;; esac
      shift 2 ;;
    --config=* | --config_file=*) config=${1#*=}; shift ;;
    --gpus=* | --num_gpus=*) gpus=${1#*=}; shift ;;
    -h | --help) usage; exit 0 ;;
    --dry_run | --dry_run=true) dry_run=yes; arguments+=("$1"); shift ;;
    *) arguments+=("$1"); shift ;;
  esac
done

if [ -z "$config" ]; then
  echo "launch_training.sh: --config is required: --config my.yaml" >&2
  usage >&2
  exit 2
fi
[ -f "$config" ] || fail "--config: the file $config does not exist (in $PWD)"
command -v "$python" >/dev/null || fail "$python was not found; set PYTHON to an interpreter with torch"
if [ -z "$gpus" ]; then
  gpus=$(count_gpus)
  if [ "$gpus" = 0 ]; then
    fail "no GPU found on this machine (CUDA_VISIBLE_DEVICES, nvidia-smi); to use CPU processes, pass --gpus 1"
  fi
fi
case "$gpus" in "" | *[!0-9]* | 0) fail "--gpus: expected an integer of at least 1, found '$gpus'" ;; esac

command=("$python" "$here/sft_main.py" --config_file "$config" --num_gpus "$gpus" ${arguments[@]+"${arguments[@]}"})
if [ -n "$dry_run" ]; then
  printf 'Without --dry_run, this starts %s processes on this machine. Command:' "$gpus"
  printf ' %q' "${command[@]}"
  printf '\n'
fi
# sft_main.py checks the configuration before it starts torchrun's launcher: an error is printed once, not per rank.
exec "${command[@]}"
