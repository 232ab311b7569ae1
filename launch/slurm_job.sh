#!/usr/bin/env bash
# What launch/slurm.sh submits; it runs on the first node of the job, not by hand.
#
#   slurm_job.sh PYTHON GRACE MAX_REQUEUES ARGUMENTS_OF_THE_PROGRAM...
set -euo pipefail
python=$1 grace=$2 max_requeues=$3
shift 3

# The first process that ends does not kill the others at once: one may still be finishing a checkpoint.
# `env` itself would take a path with = in it for one more variable.
status=0
# shellcheck disable=SC2016 # the inner bash puts the words in
srun "--cpus-per-task=$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 "--wait=$grace" \
    env PYTHONUNBUFFERED=1 bash -c 'exec -- "$0" "$@"' "$python" -m moco_jax.main --distributed "$@" || status=$?

# srun ends with the highest status of all processes: above 128 one was ended by that signal less 128.
case $status in
    143) reason='stopped and saved' ;;
    75) reason='another run is still at work in the workdir, or a process was lost' ;;
    *) reason="a process was killed (status $status)" ;;
esac
if ((status == 75 || status > 128)); then
    if ((${SLURM_RESTART_COUNT:-0} >= max_requeues)); then
        echo "launcher: $reason, but MAX_REQUEUES=$max_requeues is reached; submit it again to go on" >&2
    else
        echo "launcher: $reason; the job goes back into the queue" >&2
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$status"
