#!/usr/bin/env bash
# Trains on several GPUs of this machine, or of several machines.
#
#   ./launch_training.sh --config my.yaml [options] [--learning_rate 1e-4 ...]
#
#   --gpus N                GPUs (processes) of this machine; default: all of its GPUs.
#                           Without a GPU, N processes run on CPU; then N has to be said.
#   --nodes N               machines; start this command on each of them
#   --node_rank R           which of them this one is, from 0
#   --rendezvous HOST:PORT  node 0 and a free port of it, the same on all machines
#   --max_restarts N        where a process dies, start all again from the newest checkpoint, N times at most
#   --log_dir DIR           one log file a rank: DIR/rank-0.log, DIR/rank-1.log, ...
#   --dry_run               do everything up to the first step, in one process, and show what a run would be
#   --help                  this text
#
# On one machine a free port is found by itself. Further options are settings, as for sft_main.py.
# PYTHON names the interpreter (default: python, else python3).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$(command -v python || echo python3)}
config=""
gpus=""
dry_run=""
arguments=()

usage() { sed -n '2,/^set /p' "${BASH_SOURCE[0]}" | sed -n 's/^# \{0,1\}//p'; }
fail() { echo "launch_training.sh: $1" >&2; exit 2; }

# As many as this process may see: a scheduler hides the others.
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
  echo "launch_training.sh: name the configuration: --config my.yaml" >&2
  usage >&2
  exit 2
fi
[ -f "$config" ] || fail "--config: there is no file $config (from $PWD)"
command -v "$python" >/dev/null || fail "there is no $python; set PYTHON to the interpreter that has torch"
if [ -z "$gpus" ]; then
  gpus=$(count_gpus)
  if [ "$gpus" = 0 ]; then
    fail "no GPU found on this machine (CUDA_VISIBLE_DEVICES, nvidia-smi); for CPU say how many processes: --gpus 1"
  fi
fi
case "$gpus" in "" | *[!0-9]* | 0) fail "--gpus: expected a whole number from 1 up, found '$gpus'" ;; esac

command=("$python" "$here/sft_main.py" --config_file "$config" --num_gpus "$gpus" ${arguments[@]+"${arguments[@]}"})
if [ -n "$dry_run" ]; then
  printf 'Without --dry_run this starts %s processes on this machine. The command:' "$gpus"
  printf ' %q' "${command[@]}"
  printf '\n'
fi
# sft_main.py checks the configuration first and then starts torchrun's launcher: a mistake is one line, not one a rank.
exec "${command[@]}"
