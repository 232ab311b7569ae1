#!/usr/bin/env bash
# Pretraining on a TPU slice of a GKE cluster, as a JobSet: one pod a host, started again when a host is lost.
#
#   export IMAGE=REGISTRY/moco:1 ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=4x4
#   export RECIPE=configs/imagenet.py WORKDIR=gs://BUCKET/imagenet
#   launch/gke_jobset.sh render -- --config.lr=0.06   print the YAML
#   launch/gke_jobset.sh submit -- --config.lr=0.06   give it to the cluster
#   launch/gke_jobset.sh logs                         follow the log of host WORKER
#   launch/gke_jobset.sh delete                       end it and forget it; the workdir stays
#
# What stands after -- goes to `python -m moco_jax.main --distributed --config=RECIPE --workdir=WORKDIR` unchanged.
# The workdir must be where all hosts see it, so it lies in a bucket: gs://BUCKET/FOLDER. So do the data.
#
# A pod that ends with a status other than 0 makes all pods start again, MAX_RESTARTS times at most; the program
# continues from its workdir. Status 2, a mistake in the command, ends the JobSet at once. A JobSet that has ended
# must be deleted before one of the same name is submitted. The cluster needs the JobSet controller installed.
#
# Options:
#   --spot      as SPOT=true below
#   --dry-run   print the commands, execute nothing
#   --help      print this
#
# Settings, from the environment, with their defaults:
NAME=${NAME:-moco}                      # name of the JobSet
IMAGE=${IMAGE:-}                        # image with '.[tpu]' installed and this checkout as its working directory
ACCELERATOR=${ACCELERATOR:-}            # as GKE names it: tpu-v4-podslice, tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice
TOPOLOGY=${TOPOLOGY:-}                  # chips of the slice, such as 4x4 or 2x2x4
CHIPS_PER_HOST=${CHIPS_PER_HOST:-4}     # chips of one host; 8 or 1 on some machines of v5e and v6e
RECIPE=${RECIPE:-}                      # --config of the program, such as configs/imagenet.py
WORKDIR=${WORKDIR:-}                    # --workdir of the program, such as gs://BUCKET/imagenet
SPOT=${SPOT:-false}                     # on spot hosts: cheaper, but may be preempted
MAX_RESTARTS=${MAX_RESTARTS:-100}       # how often the pods start again
SAVE_SECONDS=${SAVE_SECONDS:-120}       # how long a pod has to save when it is told to end
NAMESPACE=${NAMESPACE:-default}         # namespace
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-}    # Kubernetes account that may write to the bucket; empty: the default one
CONTEXT=${CONTEXT:-}                    # context of kubectl; empty: the current one
WORKER=${WORKER:-0}                     # host whose log is shown
LOG_LINES=${LOG_LINES:-50}              # how much of it, before it is followed

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_command 'render submit logs delete' "$@"
set -- ${program[@]+"${program[@]}"}

need_name NAME moco
need_name NAMESPACE default
need_number LOG_LINES 50
[[ $WORKER =~ ^[0-9]+$ ]] || die "WORKER=$WORKER is no number of a host; WORKER=0 would work"
kubectl=(kubectl "--namespace=$NAMESPACE")
[[ -z $CONTEXT ]] || kubectl+=("--context=$CONTEXT")

case $action in
    render | submit)
        need IMAGE REGISTRY/moco:1
        need ACCELERATOR tpu-v5-lite-podslice
        need TOPOLOGY 4x4
        need RECIPE configs/imagenet.py
        need WORKDIR gs://BUCKET/imagenet
        [[ $WORKDIR == gs://* ]] || die "WORKDIR=$WORKDIR is on each pod's own disk; WORKDIR=gs://BUCKET/FOLDER would work"
        [[ $TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] || die "TOPOLOGY=$TOPOLOGY is no product of chips; TOPOLOGY=4x4 would work"
        need_number CHIPS_PER_HOST 4
        need_number MAX_RESTARTS 100
        need_number SAVE_SECONDS 120
        need_switch SPOT
        for name in NAME NAMESPACE IMAGE ACCELERATOR SERVICE_ACCOUNT RECIPE WORKDIR; do
            need_unicode "$name" "${!name}"
        done
        for word in "$@"; do
            need_unicode 'an argument' "$word"
        done
        chips=$((${TOPOLOGY//x/ * }))
        ((chips % CHIPS_PER_HOST == 0)) ||
            die "CHIPS_PER_HOST=$CHIPS_PER_HOST does not divide TOPOLOGY=$TOPOLOGY, which is $chips; CHIPS_PER_HOST=$((chips < 4 ? chips : 4)) would work"
        ;;
    *)
        (($# == 0)) || die "$action takes no arguments of the program; only render and submit do"
        ;;
esac
if [[ $action != render ]] && ! $DRY_RUN; then
    command -v kubectl >/dev/null || die "kubectl is not there; the Google Cloud SDK has it"
fi

# A text as a YAML scalar within double quotes: what YAML does not print, or would read as the end of a line, is escaped.
yaml() {
    local LC_ALL=C text=$1 quoted='' character number i
    for ((i = 0; i < ${#text}; i++)); do
        character=${text:i:1}
        case $character in
            [\\\"]) quoted+="\\$character" ;;
            [$'\x01'-$'\x1f'$'\x7f'])
                printf -v number '%02x' "'$character"
                quoted+="\\x$number"
                ;;
            $'\xc2' | $'\xe2' | $'\xef')
                case ${text:i:3} in
                    $'\xc2'[$'\x80'-$'\x9f']*)
                        printf -v number '%d' "'${text:i+1:1}"
                        printf -v number '%02x' "$((number & 255))"
                        quoted+="\\x$number" i=$((i + 1))
                        ;;
                    $'\xe2\x80\xa8') quoted+='\L' i=$((i + 2)) ;;
                    $'\xe2\x80\xa9') quoted+='\P' i=$((i + 2)) ;;
                    $'\xef\xbb\xbf') quoted+='\uFEFF' i=$((i + 2)) ;;
                    $'\xef\xbf\xbe') quoted+='\uFFFE' i=$((i + 2)) ;;
                    $'\xef\xbf\xbf') quoted+='\uFFFF' i=$((i + 2)) ;;
                    *) quoted+=$character ;;
                esac
                ;;
            *) quoted+=$character ;;
        esac
    done
    printf '"%s"' "$quoted"
}

# An argument of the container. Kubernetes puts variables in where it reads $(NAME), and makes $$ one $.
argument() {
    printf '                    - %s\n' "$(yaml "${1//\$/\$\$}")"
}

render() {
    local hosts=$((chips / CHIPS_PER_HOST)) word
    cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(yaml "$NAME")
  namespace: $(yaml "$NAMESPACE")
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $MAX_RESTARTS
    rules:
      # The status that means a mistake in the command; every other failure starts all pods again.
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [2]
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: $SAVE_SECONDS
END
    [[ -z $SERVICE_ACCOUNT ]] || printf '              serviceAccountName: %s\n' "$(yaml "$SERVICE_ACCOUNT")"
    cat <<END
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $(yaml "$ACCELERATOR")
                cloud.google.com/gke-tpu-topology: $(yaml "$TOPOLOGY")
END
    if $SPOT; then
        cat <<END
                cloud.google.com/gke-spot: "true"
              tolerations:
                - key: cloud.google.com/gke-spot
                  operator: Equal
                  value: "true"
                  effect: NoSchedule
END
    fi
    cat <<END
              containers:
                - name: train
                  image: $(yaml "$IMAGE")
                  env:
                    - name: PYTHONUNBUFFERED
                      value: "1"
                  resources:
                    limits:
                      google.com/tpu: $CHIPS_PER_HOST
                  command:
END
    for word in python -m moco_jax.main --distributed "--config=$RECIPE" "--workdir=$WORKDIR" "$@"; do
        argument "$word"
    done
}

case $action in
    render) render "$@" ;;
    submit)
        if $DRY_RUN; then
            printf "%s <<'END'\n%s\nEND\n" "$(quote "${kubectl[@]}" apply -f -)" "$(render "$@")"
        else
            render "$@" | "${kubectl[@]}" apply -f -
        fi
        ;;
    logs)
        pod=jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=$WORKER
        run "${kubectl[@]}" logs -f "--tail=$LOG_LINES" "--selector=$pod"
        ;;
    delete) run "${kubectl[@]}" delete jobset "$NAME" ;;
esac
