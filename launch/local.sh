#!/usr/bin/env bash
# Several processes of one run on this machine, joined over loopback: a multi-host run without a second host.
#
#   launch/local.sh --processes 2 --devices-per-process 4 -- --config=configs/digits.py --workdir=runs/two
#
# What stands after -- goes to `python -m moco_jax.main` unchanged. It is meant for CPUs: one process alone
# drives all GPUs of a machine, without a launcher.
#
# Process 0 prints here, and every process writes to LOGDIR/process_NUMBER.log. When one ends with an error or
# is killed, the others are ended, and its status is the status of this script. SIGTERM, or Ctrl-C, lets all of
# them save and end; a second one kills them. The same command goes on from the workdir.
#
# With --restarts all start again where one was killed or failed, as a scheduler does it; not after status 2, a
# mistake in the command, nor when they were asked to end. --kill-after plays the preemption for it.
#
# Options:
#   --processes N             as PROCESSES below
#   --devices-per-process N   as DEVICES_PER_PROCESS below
#   --restarts N              as RESTARTS below
#   --kill-after SECONDS      as KILL_AFTER below
#   --kill N                  as KILL below
#   --dry-run                 print the commands, execute nothing
#   --help                    print this
#
# Settings, from the environment, with their defaults:
PROCESSES=${PROCESSES:-2}                      # how many processes
DEVICES_PER_PROCESS=${DEVICES_PER_PROCESS:-}   # CPU devices of each; empty: the devices that JAX finds
PYTHON=${PYTHON:-python3}                      # the Python that has the package installed
PORT=${PORT:-}                                 # where process 0 listens; empty: a free port
LOGDIR=${LOGDIR:-runs/logs/$(date +%F-%H%M%S)} # folder of the logs
GRACE=${GRACE:-30}                             # seconds the others have to end after the first; then they are killed
RESTARTS=${RESTARTS:-0}                        # how often all start again
KILL_AFTER=${KILL_AFTER:-}                     # seconds after the first start at which one is killed; empty: none
KILL=${KILL:-}                                 # the number of that process; empty: chosen at random

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

while (($#)); do
    case $1 in
        --help) show_help "$0" && exit ;;
        --dry-run) DRY_RUN=true ;;
        --processes=*) PROCESSES=${1#*=} ;;
        --devices-per-process=*) DEVICES_PER_PROCESS=${1#*=} ;;
        --restarts=*) RESTARTS=${1#*=} ;;
        --kill-after=*) KILL_AFTER=${1#*=} ;;
        --kill=*) KILL=${1#*=} ;;
        --processes | --devices-per-process | --restarts | --kill-after | --kill)
            (($# > 1)) || die "$1 needs a number; $1 2 would work"
            set -- "$1=$2" "${@:3}"
            continue
            ;;
        --) shift && break ;;
        *) die "$1 is no option of this script; --help lists them, and those of the program follow --" ;;
    esac
    shift
done
need_number PROCESSES 2
need_number GRACE 30
[[ $RESTARTS == 0 ]] || need_number RESTARTS 3
[[ -z $KILL_AFTER ]] || need_number KILL_AFTER 60
[[ -z $KILL || ($KILL =~ ^(0|[1-9][0-9]*)$ && $KILL -lt $PROCESSES) ]] ||
    die "KILL=$KILL is no number of a process, from 0 to $((PROCESSES - 1)); KILL=0 would work"
[[ -z $DEVICES_PER_PROCESS ]] || need_number DEVICES_PER_PROCESS 4
[[ -z $PORT ]] || need_number PORT 12345
need_workdir "$@"

free_port() {
    local port
    while true; do
        port=$((20000 + RANDOM % 10000))
        # Where nobody answers it is free.
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

GIVEN_PORT=$PORT
PORT=${PORT:-$(free_port)}
variables=(PYTHONUNBUFFERED=1)
if [[ -n $DEVICES_PER_PROCESS ]]; then
    flag=--xla_force_host_platform_device_count=$DEVICES_PER_PROCESS
    variables+=(JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$flag")
fi

# Sets `command` to what process $1 executes; the arguments of the program follow.
command_of() {
    local number=$1
    shift
    # `env` itself would take a path with = in it for one more variable.
    # shellcheck disable=SC2016 # the inner bash puts the words in
    command=(env "${variables[@]}" bash -c 'exec -- "$0" "$@"' "$PYTHON" -m moco_jax.main "--coordinator=127.0.0.1:$PORT"
        "--num_processes=$PROCESSES" "--process_id=$number" "$@")
}

LOGDIR=$(as_path "$LOGDIR")
run mkdir -p "$LOGDIR"
if $DRY_RUN; then
    for ((i = 0; i < PROCESSES; i++)); do
        command_of "$i" "$@"
        remark "process $i, output to $LOGDIR/process_$i.log"
        quote "${command[@]}"
    done
    exit
fi

pids=()
# Send signal $1 to the processes, each with all that it started.
send() {
    local pid
    for pid in ${pids[@]+"${pids[@]}"}; do
        kill "-$1" -- "-$pid" 2>/dev/null || true
    done
}

asked=false told=false
# shellcheck disable=SC2317,SC2329 # `trap` calls it
on_signal() {
    if $asked; then
        send KILL
    else
        asked=true
        send TERM
    fi
}
# Say that a signal came. `on_signal` leaves it to the loop: bash may lose a second signal that
# comes before a trap has ended, and whoever reads this may send one at once.
tell() {
    if $asked && ! $told; then
        told=true
        echo "launcher: all processes are asked to save and end; once more kills them" >&2
    fi
}
trap on_signal TERM INT HUP
scratch=$(mktemp -d)
trap 'send KILL; rm -rf "$scratch"' EXIT

# The output of process 0 goes through `tee`, which no signal ends before its input does.
mkfifo "$scratch/output"
(
    trap '' TERM INT HUP
    exec tee "$LOGDIR/process_0.log" <"$scratch/output"
) &
tee_pid=$!
exec 3>"$scratch/output"
for ((i = 1; i < PROCESSES; i++)); do
    : >"$LOGDIR/process_$i.log"
done

start_all() {
    local i
    pids=()
    set -m # each process in a group of its own: Ctrl-C reaches this script alone
    for ((i = 0; i < PROCESSES; i++)); do
        command_of "$i" "$@"
        if ((i == 0)); then
            "${command[@]}" </dev/null >&3 2>&1 3>&- &
        else
            "${command[@]}" </dev/null >>"$LOGDIR/process_$i.log" 2>&1 3>&- &
        fi
        pids+=("$!")
    done
    set +m
    if $asked; then
        send TERM # to those that started after the signal came
    fi
}

# Play a preemption, once, when its time has come.
preempt() {
    if [[ -n $KILL_AFTER ]] && ((SECONDS >= KILL_AFTER)); then
        local number=${KILL:-$((RANDOM % PROCESSES))}
        KILL_AFTER=''
        echo "launcher: process $number is killed, as by a preemption" >&2
        kill -KILL -- "-${pids[number]}" 2>/dev/null || true
    fi
}

# Wait until all processes have ended. Sets `status`: that of the first that failed.
wait_for_all() {
    local deadline='' left=$PROCESSES ended=() i code
    status=0
    while ((left)); do
        tell
        preempt
        for ((i = 0; i < PROCESSES; i++)); do
            if [[ -n ${ended[i]-} ]] || kill -0 "${pids[i]}" 2>/dev/null; then
                continue
            fi
            code=0
            wait "${pids[i]}" 2>/dev/null || code=$?
            ended[i]=$code left=$((left - 1))
            if ((code != 0 && status == 0)); then
                status=$code
                if ! $asked; then
                    send TERM
                    echo "launcher: process $i ended with status $code; the others are ended; see $LOGDIR/process_$i.log" >&2
                    ((i == 0)) || tail -n 5 "$LOGDIR/process_$i.log" >&2
                fi
            fi
            # When those that are left are killed.
            if [[ -z $deadline ]] && { $asked || ((code != 0)); }; then
                deadline=$((SECONDS + GRACE))
            fi
        done
        if [[ -n $deadline ]] && ((left && SECONDS >= deadline)); then
            echo "launcher: $left left after $GRACE seconds; killed" >&2
            send KILL
            deadline=$((SECONDS + GRACE))
        fi
        ((left == 0)) || sleep 0.1 || true
    done
    tell
    send KILL # what they may have left behind
}

SECONDS=0 restarts=0
while true; do
    start_all "$@"
    wait_for_all
    if $asked || ((status == 0 || status == 2 || restarts >= RESTARTS)); then
        break
    fi
    restarts=$((restarts + 1))
    echo "launcher: all processes start again ($restarts of at most $RESTARTS restarts)" >&2
    PORT=${GIVEN_PORT:-$(free_port)}
done
exec 3>&-
wait "$tee_pid" || true
exit "$status"
