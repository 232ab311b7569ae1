#!/usr/bin/env bash
# A Slurm job on GPUs: one process a GPU, on one node or many.
#
#   NODES=2 GPUS_PER_NODE=8 launch/slurm.sh -- --config=configs/imagenet.py --workdir=/shared/runs/imagenet
#
# What stands after -- goes to `python -m moco_jax.main` unchanged. The workdir, the data, the virtual environment
# and this folder must lie on a disk that all nodes see.
#
# SAVE_SECONDS before the time limit the program gets SIGTERM, saves and ends with status 143; the job then goes
# back into the queue and continues from its workdir. So it does where a process was killed or lost, and where another
# run is still at work in the workdir (status 75); Slurm itself puts it back after a preemption or the loss of a node.
# Status 2, a mistake in the command, ends it for good, and so do status 1, a bug, and `scancel JOB`.
#
# Options:
#   --dry-run   print the command, execute nothing
#   --help      print this
#
# Settings, from the environment, with their defaults. For what is not among them sbatch reads its own variables,
# such as SBATCH_QOS and SBATCH_CONSTRAINT.
JOB_NAME=${JOB_NAME:-moco}           # name of the job and of its log
NODES=${NODES:-1}                    # how many nodes
GPUS_PER_NODE=${GPUS_PER_NODE:-1}    # how many GPUs, and so processes, on each
CPUS_PER_GPU=${CPUS_PER_GPU:-8}      # cores for each process
TIME=${TIME:-24:00:00}               # time limit, after which the job goes back into the queue
PARTITION=${PARTITION:-}             # partition; empty: the default one
ACCOUNT=${ACCOUNT:-}                 # account that pays; empty: the default one
VENV=${VENV:-.venv}                  # virtual environment that has the package installed
LOGDIR=${LOGDIR:-runs/slurm}         # folder of the logs, one a job
SAVE_SECONDS=${SAVE_SECONDS:-120}    # how long before the time limit the program is told to save
GRACE=${GRACE:-300}                  # seconds the other processes have to end after the first; then they are killed
MAX_REQUEUES=${MAX_REQUEUES:-100}    # how often the job goes back into the queue

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

while (($#)); do
    case $1 in
        --help) show_help "$0" && exit ;;
        --dry-run) DRY_RUN=true ;;
        --) shift && break ;;
        *) die "$1 is no option of this script; --help lists them, and those of the program follow --" ;;
    esac
    shift
done
need_number NODES 1
need_number GPUS_PER_NODE 8
need_number CPUS_PER_GPU 8
need_number SAVE_SECONDS 120
need_number GRACE 300
need_number MAX_REQUEUES 100
need_workdir "$@"
[[ $JOB_NAME != */* && $JOB_NAME != *\\* ]] || die "JOB_NAME=$JOB_NAME cannot name a log file; JOB_NAME=moco would work"
[[ $LOGDIR != *\\* ]] || die "LOGDIR=$LOGDIR has a backslash, which Slurm takes for a sign of its own; LOGDIR=runs/slurm would work"
LOGDIR=$(as_path "$LOGDIR")
[[ $VENV == /* ]] || VENV=$PWD/$VENV
if ! $DRY_RUN; then
    [[ -x $VENV/bin/python ]] || die "VENV=$VENV has no bin/python; VENV=FOLDER of a virtual environment would work"
    command -v sbatch >/dev/null || die "sbatch is not there; a login node of a Slurm cluster has it"
fi

command=(sbatch "--job-name=$JOB_NAME" "--nodes=$NODES" "--ntasks-per-node=$GPUS_PER_NODE"
    "--gpus-per-node=$GPUS_PER_NODE" "--cpus-per-task=$CPUS_PER_GPU" "--time=$TIME"
    --requeue "--signal=TERM@$SAVE_SECONDS" --open-mode=append "--output=${LOGDIR//%/%%}/%x-%j.log")
[[ -z $PARTITION ]] || command+=("--partition=$PARTITION")
[[ -z $ACCOUNT ]] || command+=("--account=$ACCOUNT")
command+=("$here/slurm_job.sh" "$VENV/bin/python" "$GRACE" "$MAX_REQUEUES" "$@")

run mkdir -p "$LOGDIR"
run "${command[@]}"
