#!/usr/bin/env bash
# Pretraining on TPU slices of a GKE cluster, as a JobSet: one pod a host, all started again when a host is lost.
#
#   export IMAGE=REGISTRY/moco:1 ACCELERATOR=tpu7x TOPOLOGY=2x2x2
#   export RECIPE=imagenet:v2 WORKDIR=gs://BUCKET/imagenet
#   launch/gke_jobset.sh render -- --config.lr=0.06   print the YAML
#   launch/gke_jobset.sh submit -- --config.lr=0.06   give it to the cluster
#   launch/gke_jobset.sh logs                         follow the log of host WORKER of slice SLICE
#   launch/gke_jobset.sh delete                       end it and forget it; the workdir stays
#
# What stands after -- goes to `python -m moco_jax.main --distributed --config=RECIPE --workdir=WORKDIR` unchanged; with
# another MODULE there is no --config.
# The workdir must be where all hosts see it, so it lies in a bucket: gs://BUCKET/FOLDER. So do the data.
#
# A pod that ends with a status other than 0 makes all pods of all slices start again, MAX_RESTARTS times at most;
# the program continues from its workdir. Status 2, a mistake in the command, ends the JobSet at once. A JobSet that
# has ended must be deleted before one of the same name is submitted. The cluster needs a TPU node pool for each slice
# and the JobSet controller, 0.7 or later.
#
# With SLICES=2 the run spans two slices of one kind, each with a node pool of its own. GKE tells the pods of a JobSet
# of several slices how they find each other; nothing of that is set here.
#
# Options:
#   --spot      as SPOT=true below
#   --dry-run   print the commands, execute nothing
#   --help      print this
#
# Settings, from the environment, with their defaults:
NAME=${NAME:-moco}                      # name of the JobSet
IMAGE=${IMAGE:-}                        # image of the Dockerfile, built with EXTRA=tpu
ACCELERATOR=${ACCELERATOR:-}            # tpu7x, tpu-v6e-slice, tpu-v5p-slice, tpu-v5-lite-podslice, tpu-v4-podslice
TOPOLOGY=${TOPOLOGY:-}                  # chips of a slice: 2x2x2 of tpu7x, v5p and v4, 4x4 of v6e and v5e
CHIPS_PER_HOST=${CHIPS_PER_HOST:-4}     # chips of one host: 4; 8 or 1 on some machines of v5e and v6e, 1 on one of tpu7x
SLICES=${SLICES:-1}                     # slices, each of TOPOLOGY; several must have several hosts each
MODULE=${MODULE:-moco_jax.main}         # program; moco_jax.evaluate evaluates
RECIPE=${RECIPE:-}                      # --config of moco_jax.main: a name that the image knows, such as imagenet:v2
WORKDIR=${WORKDIR:-}                    # --workdir of the program, such as gs://BUCKET/imagenet
SPOT=${SPOT:-false}                     # on spot hosts: cheaper, but may be preempted
MAX_RESTARTS=${MAX_RESTARTS:-100}       # how often the pods start again
SAVE_SECONDS=${SAVE_SECONDS:-120}       # how long a pod has to save when it is told to end
NAMESPACE=${NAMESPACE:-default}         # namespace
HOST_NETWORK=${HOST_NETWORK:-false}     # whether pods use their host's network: JobSet's example of slices of v6e does
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-}    # Kubernetes account that may write to the bucket; empty: the default one
CONTEXT=${CONTEXT:-}                    # context of kubectl; empty: the current one
SLICE=${SLICE:-0}                       # slice of the host whose log is shown
WORKER=${WORKER:-0}                     # its number within the slice
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
[[ $SLICE =~ ^[0-9]+$ ]] || die "SLICE=$SLICE is no number of a slice; SLICE=0 would work"
kubectl=(kubectl "--namespace=$NAMESPACE")
[[ -z $CONTEXT ]] || kubectl+=("--context=$CONTEXT")

# What a slice of ACCELERATOR may look like. The sources, read in November 2026:
# "TPU7x (Ironwood)", docs.cloud.google.com/tpu/docs/tpu7x: GKE or Compute Engine create it; a chip has two TensorCores.
# "About Ironwood (TPU7x) in GKE", docs.cloud.google.com/kubernetes-engine/docs/concepts/tpu-ironwood: four chips a
# machine; clusters from 1.34.0-gke.2201000 (Autopilot 1.34.1-gke.3084001) on; a node pool of several hosts gets a
# workload policy in place of a topology.
# "GKE TPU 7x Blueprint", GoogleCloudPlatform/cluster-toolkit examples/gke-tpu-7x: the label tpu7x, the machine type
# tpu7x-standard-4t, topologies AxBxC; JAX sees each TensorCore as a device, so 2x2x1 are eight.
# src/xpk/core/system_characteristics.py of AI-Hypercomputer/xpk: labels, machine types, chips a machine and topologies
# of the others, and tpu7x-standard-1t with one chip.
check_slice() {
    local works=4x4
    case $ACCELERATOR in
        tpu7x)
            works=2x2x2
            [[ $CHIPS_PER_HOST == [14] ]] ||
                die "CHIPS_PER_HOST=$CHIPS_PER_HOST is no machine of ACCELERATOR=tpu7x; CHIPS_PER_HOST=4 would work"
            ;;
        tpu-v5p-slice | tpu-v4-podslice) works=2x2x2 ;;
        tpu-v6e-slice | tpu-v5-lite-podslice) ;;
        *) works= ;;
    esac
    [[ -z $works || ${TOPOLOGY//[0-9]/} == "${works//[0-9]/}" ]] ||
        die "TOPOLOGY=$TOPOLOGY is no slice of ACCELERATOR=$ACCELERATOR; TOPOLOGY=$works would work"
}

case $action in
    render | submit)
        need IMAGE REGISTRY/moco:1
        need ACCELERATOR tpu7x
        need TOPOLOGY 2x2x2
        [[ $MODULE != moco_jax.main ]] || need RECIPE imagenet:v2
        need WORKDIR gs://BUCKET/imagenet
        [[ $WORKDIR == gs://* ]] || die "WORKDIR=$WORKDIR is on each pod's own disk; WORKDIR=gs://BUCKET/FOLDER would work"
        [[ $TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] || die "TOPOLOGY=$TOPOLOGY is no product of chips; TOPOLOGY=4x4 would work"
        need_number CHIPS_PER_HOST 4
        need_number MAX_RESTARTS 100
        need_number SAVE_SECONDS 120
        need_number SLICES 1
        need_switch SPOT
        need_switch HOST_NETWORK
        for name in NAME NAMESPACE IMAGE ACCELERATOR SERVICE_ACCOUNT MODULE RECIPE WORKDIR; do
            need_unicode "$name" "${!name}"
        done
        for word in "$@"; do
            need_unicode 'an argument' "$word"
        done
        check_slice
        chips=$((${TOPOLOGY//x/ * }))
        ((chips % CHIPS_PER_HOST == 0)) ||
            die "CHIPS_PER_HOST=$CHIPS_PER_HOST does not divide TOPOLOGY=$TOPOLOGY, which is $chips; CHIPS_PER_HOST=$((chips < 4 ? chips : 4)) would work"
        # "Deploy TPU Multislices in GKE", cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice
        ((SLICES == 1 || chips > CHIPS_PER_HOST)) ||
            die "SLICES=$SLICES must each have several hosts, and TOPOLOGY=$TOPOLOGY with CHIPS_PER_HOST=$CHIPS_PER_HOST is one; SLICES=1 would work"
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

# The JobSet controller ("Failure Policy", jobset.sigs.k8s.io/docs/tasks/failure_policy) looks at the first rule that
# fits; what no rule names starts all jobs again and counts towards maxRestarts. BlockingRecreate: no pod starts before
# all pods of the last attempt are gone, so that none meets one that is still saving (kubernetes-sigs/jobset#684).
# The annotation gives each slice a node pool of its own. GKE sets the variables TPU_* and MEGASCALE_* of a JobSet's
# pods ("TPU Multislice", jobset.sigs.k8s.io/docs/tasks/tpu_multislice, whose example sets none), and
# `jax.distributed.initialize()` reads them (jax/_src/clusters/cloud_tpu_cluster.py).
render() {
    local hosts=$((chips / CHIPS_PER_HOST)) recipe=() word
    [[ $MODULE != moco_jax.main ]] || recipe=("--config=$RECIPE")
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
    restartStrategy: BlockingRecreate
    rules:
      # The status that means a mistake in the command; every other failure starts all pods again.
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $SLICES
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
    if $HOST_NETWORK; then
        cat <<END
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
END
    fi
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
    for word in python -m "$MODULE" --distributed ${recipe[@]+"${recipe[@]}"} "--workdir=$WORKDIR" "$@"; do
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
        pod=jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=$SLICE,batch.kubernetes.io/job-completion-index=$WORKER
        run "${kubectl[@]}" logs -f "--tail=$LOG_LINES" "--selector=$pod"
        ;;
    delete) run "${kubectl[@]}" delete jobset "$NAME" ;;
esac
