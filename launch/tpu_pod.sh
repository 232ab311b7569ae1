#!/usr/bin/env bash
# Pretraining on a Cloud TPU slice, on all its hosts, through gcloud (queued resources).
#
# Google no longer develops the API behind it (`gcloud compute tpus`), and that does not serve TPU7x and later TPUs:
# launch/gke_jobset.sh does, and is the way to begin with. This one serves v2 to v6e.
#
#   export NAME=moco ZONE=us-central2-b TYPE=v4-32
#   launch/tpu_pod.sh create --spot      ask for the slice
#   launch/tpu_pod.sh install            wait for it, then bring this checkout to all hosts and install it
#   launch/tpu_pod.sh run -- --config=configs/imagenet.py --workdir=gs://BUCKET/imagenet
#   launch/tpu_pod.sh logs               follow the log of host WORKER; Ctrl-C leaves the run alone
#   launch/tpu_pod.sh status             state of the slice, and whether the program runs on its hosts
#   launch/tpu_pod.sh stop               let the program end, pretraining after it saved; `run` goes on
#   launch/tpu_pod.sh resume -- ...      with what `run` got: go on after a preemption or a stop
#   launch/tpu_pod.sh delete             give the slice back
#
# What stands after -- goes to `python -m MODULE --distributed` unchanged. The workdir must be where all
# hosts see it: gs://BUCKET/FOLDER, or an absolute path on a disk that all of them mount. So must the data.
#
# resume does what the state of the slice asks for: ACTIVE: start the program again; SUSPENDED (preempted) or
# FAILED: delete, create, install and run. The program itself continues from its workdir. Give --spot again.
#
# Options:
#   --spot      as SPOT=true below
#   --dry-run   print the commands, execute nothing
#   --help      print this
#
# Settings, from the environment, with their defaults:
NAME=${NAME:-moco}                        # name of the slice and of its queued resource
ZONE=${ZONE:-}                            # zone, such as us-central2-b
TYPE=${TYPE:-}                            # accelerator type, such as v4-32, v5litepod-16, v5p-32, v6e-16
MODULE=${MODULE:-moco_jax.main}           # program that `run` and `resume` start; moco_jax.evaluate evaluates
PROJECT=${PROJECT:-}                      # Cloud project; empty: the one that gcloud is set to
RUNTIME=${RUNTIME:-}                      # image of the hosts; empty: the one for TYPE
SPOT=${SPOT:-false}                       # cheaper, but may be preempted
PYTHON_VERSION=${PYTHON_VERSION:-3.12}    # Python that is installed on the hosts
WORKER=${WORKER:-0}                       # host whose log is shown
LOG_LINES=${LOG_LINES:-50}                # how much of it, before it is followed
POLL_SECONDS=${POLL_SECONDS:-30}          # how often the state is asked for while waiting

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

read_command 'create install run logs status stop resume delete' "$@"
set -- ${program[@]+"${program[@]}"}
need_name NAME moco
need ZONE us-central2-b
[[ $WORKER =~ ^([0-9]+|all)$ ]] || die "WORKER=$WORKER is no number of a host; WORKER=0 would work"
# "Run JAX code on TPU slices", docs.cloud.google.com/tpu/docs/jax-pods: "The Cloud TPU API is not supported on TPU7x
# and later TPU versions."
case $TYPE in
    tpu[7-9]* | v[7-9]-* | v[7-9][a-z]*)
        die "TYPE=$TYPE is of a generation that the Cloud TPU API does not serve; launch/gke_jobset.sh with ACCELERATOR=tpu7x TOPOLOGY=2x2x2 would work"
        ;;
esac
need_switch SPOT
need_number LOG_LINES 50
need_number POLL_SECONDS 30

where=("--zone=$ZONE")
[[ -z $PROJECT ]] || where+=("--project=$PROJECT")
queue=(gcloud compute tpus queued-resources)

case $action in
    run | resume)
        need_workdir "$@"
        workdir=$(workdir_of "$@")
        [[ $workdir == *://* || $workdir == /* ]] ||
            die "--workdir=$workdir is on each host's own disk; --workdir=gs://BUCKET/FOLDER would work"
        ;;
    *)
        (($# == 0)) || die "$action takes no arguments of the program; only run and resume do"
        ;;
esac
case $action in
    create | resume)
        need TYPE v4-32
        case $TYPE in
            v2-* | v3-* | v4-*) RUNTIME=${RUNTIME:-tpu-ubuntu2204-base} ;;
            v5litepod-*) RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} ;;
            v5p-*) RUNTIME=${RUNTIME:-v2-alpha-tpuv5} ;;
            v6e-*) RUNTIME=${RUNTIME:-v2-alpha-tpuv6e} ;;
        esac
        [[ -n $RUNTIME ]] || die "RUNTIME is not set, and TYPE=$TYPE is not known here; RUNTIME=v2-alpha-tpuv6e would work for v6e-16"
        ;;
esac
$DRY_RUN || command -v gcloud >/dev/null || die "gcloud is not there; the Google Cloud SDK has it"

# ssh_to HOSTS COMMAND: a line for bash on host 0, 1, ... or `all`.
ssh_to() {
    run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" "--worker=$1" "--command=$2"
}

# The state of the queued resource; nothing if there is none.
state() {
    run "${queue[@]}" list "${where[@]}" "--filter=name~queuedResources/$NAME\$" '--format=value(state.state)'
}

create() {
    local command=("${queue[@]}" create "$NAME" "--node-id=$NAME" "--accelerator-type=$TYPE"
        "--runtime-version=$RUNTIME" "${where[@]}")
    if $SPOT; then
        command+=(--spot)
    fi
    run "${command[@]}"
}

wait_until_active() {
    local now last=
    if $DRY_RUN; then
        remark "every $POLL_SECONDS seconds until it is ACTIVE"
        state
        return
    fi
    while true; do
        now=$(state)
        case $now in
            ACTIVE) return ;;
            '') die "NAME=$NAME is not in ZONE=$ZONE; the sub-command create asks for it" ;;
            FAILED | SUSPENDED | DELETING) die "NAME=$NAME is $now; the sub-command resume makes it anew" ;;
        esac
        [[ $now == "$last" ]] || echo "launcher: $NAME is $now; waiting until it is ACTIVE" >&2
        last=$now
        sleep "$POLL_SECONDS"
    done
}

# Python comes with uv, as the images bring one that is too old.
install() {
    local archive=${TMPDIR:-/tmp}/$NAME.tar.gz unpack python package
    unpack="rm -rf moco_jax/moco_jax moco_jax/configs && mkdir -p moco_jax && tar -xzf $(quote "$NAME.tar.gz") -C moco_jax"
    python="PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv && { test -x .venv/bin/python || python3 -m uv venv --quiet --python $(quote "$PYTHON_VERSION") .venv; }"
    package="python3 -m uv pip install --quiet --python .venv/bin/python --editable '.[tpu]'"
    run tar -C "$root" --exclude=__pycache__ -czf "$archive" moco_jax configs launch pyproject.toml setup.cfg README.md
    run gcloud compute tpus tpu-vm scp "$archive" "$NAME:" "${where[@]}" --worker=all
    run rm -f "$archive"
    ssh_to all "$unpack && cd moco_jax && $python && $package"
}

# Texts for bash on a host: go to the folder; is the program running there?; say so.
enter='cd moco_jax || exit 1'
running="test -f run.pid && kill -0 \"\$(cat run.pid)\" 2>/dev/null"
say="echo \"\$(hostname):\""

start() {
    local program
    program=$(quote env PYTHONUNBUFFERED=1 .venv/bin/python -m "$MODULE" --distributed "$@")
    ssh_to all "$enter; if $running; then $say already running; exit 1; fi; nohup $program >>run.log 2>&1 </dev/null & echo \$! >run.pid"
}

stop() {
    ssh_to all "$enter; if $running; then kill -TERM \"\$(cat run.pid)\"; $say is told to end; else $say not running; fi"
}

status() {
    local now=ACTIVE
    if $DRY_RUN; then
        state
        remark "if it is ACTIVE:"
    else
        now=$(state)
        echo "$NAME: ${now:-not there}"
    fi
    if [[ $now == ACTIVE ]]; then
        ssh_to all "$enter; if $running; then $say running; else $say not running; fi; tail -n 1 run.log"
    fi
}

resume() {
    local now=
    if $DRY_RUN; then
        state
        remark "if it is SUSPENDED or FAILED, these first:"
    else
        now=$(state)
        while [[ $now == SUSPENDING || $now == DELETING ]]; do
            echo "launcher: $NAME is $now; waiting until that is over" >&2
            sleep "$POLL_SECONDS"
            now=$(state)
        done
        echo "launcher: $NAME is ${now:-not there}" >&2
    fi
    if [[ $now != ACTIVE ]]; then
        if $DRY_RUN || [[ $now == SUSPENDED || $now == FAILED ]]; then
            run "${queue[@]}" delete "$NAME" "${where[@]}" --force --quiet
        fi
        if $DRY_RUN || [[ -z $now || $now == SUSPENDED || $now == FAILED ]]; then
            create
        fi
        wait_until_active
        install
    fi
    remark "in every state:"
    start "$@"
}

case $action in
    create) create ;;
    install)
        wait_until_active
        install
        ;;
    run) start "$@" ;;
    logs) ssh_to "$WORKER" "tail -n $LOG_LINES -f moco_jax/run.log" ;;
    status) status ;;
    stop) stop ;;
    resume) resume "$@" ;;
    delete) run "${queue[@]}" delete "$NAME" "${where[@]}" --force ;;
esac
