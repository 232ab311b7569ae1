"""The launch scripts: what they execute, what reaches the program, how processes end together.

No cloud, no cluster and no training is needed: `gcloud`, `kubectl`, `sbatch`, `srun` and Python
are small stand-ins that note what they got.
"""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = ["tpu_pod.sh", "gke_jobset.sh", "slurm.sh", "local.sh"]
POD, JOBSET, SLURM, LOCAL = SCRIPTS
AWKWARD = [
    "--config.data_dir=a folder",
    'it\'s "quoted"',
    "$(touch x) `touch x` $HOME ${A} $$",
    "a\\b;c&&d|e*",
    "",
]
PROGRAM = ["--config=configs/digits.py", "--workdir=/shared/run", *AWKWARD]
TPU = dict(ZONE="us-central2-b", TYPE="v4-32", NAME="pod")
GKE = dict(
    IMAGE="registry/moco:1",
    ACCELERATOR="tpu-v5-lite-podslice",
    TOPOLOGY="4x4",
    RECIPE="configs/digits.py",
    WORKDIR="gs://bucket/run",
    NAME="pod",
)
IRONWOOD = {**GKE, "ACCELERATOR": "tpu7x", "TOPOLOGY": "2x2x2"}
SETTINGS = {"tpu_pod.sh": TPU, "gke_jobset.sh": GKE}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def environment(path=None, **settings):
    """An environment with little in it; `path`: a folder of stand-ins that are found first."""
    found = "/usr/bin:/bin" if path is None else f"{path}:/usr/bin:/bin"
    return {"PATH": found, "HOME": "/nowhere", **{k: str(v) for k, v in settings.items()}}


def launch(script, *arguments, cwd, path=None, env=None, **settings):
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        cwd=cwd,
        env={**environment(path, **settings), **(env or {})},
        capture_output=True,
        text=True,
        timeout=20,
    )


def dry(script, *arguments, cwd, **settings):
    """The commands that a dry run prints, as lists of words, and its remarks left out."""
    done = launch(
        script, "--dry-run", *arguments, cwd=cwd, **{**SETTINGS.get(script, {}), **settings}
    )
    assert done.returncode == 0, done.stderr
    assert not list(Path(cwd).iterdir()), "a dry run leaves nothing behind"
    return [shlex.split(x) for x in done.stdout.splitlines() if not x.startswith("#")]


def remote(command):
    """The line for the hosts within a `gcloud ... ssh` command."""
    return next(w for w in command if w.startswith("--command=")).removeprefix("--command=")


def stand_in(folder, name, body):
    """An executable Python script `name`."""
    folder.mkdir(exist_ok=True)
    place = folder / name
    place.write_text(
        f"#!{sys.executable} -IS\n"
        "import json, os, signal, sys, time\n"
        f"HERE = {str(folder)!r}\n"
        f"{body}"
    )
    place.chmod(0o755)
    return place


RECORD = "open(f'{HERE}/%s.jsonl', 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"


def recorded(folder, name):
    return [json.loads(x) for x in (folder / f"{name}.jsonl").read_text().splitlines()]


def wait_for(condition, seconds=10):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.02)


# All scripts


@pytest.mark.parametrize("name", [*SCRIPTS, "common.sh", "slurm_job.sh"])
def test_syntax(name):
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)


def test_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", "-x", *sorted(LAUNCH.glob("*.sh"))], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_it_is_and_lists_all_settings(name, tmp_path):
    done = launch(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert not done.stderr
    assert f"launch/{name}" in done.stdout
    assert "--dry-run" in done.stdout
    head, _, _ = (LAUNCH / name).read_text().partition("set -euo pipefail")
    for line in head.splitlines():
        if "=${" in line:
            assert " # " in line, "every setting has a comment"
            assert line in done.stdout
    if name != "local.sh":
        assert "workdir" in done.stdout
        assert "see" in done.stdout, "the workdir must be where all hosts see it"


@pytest.mark.parametrize(
    ("name", "arguments", "settings", "message"),
    [
        (POD, ["create"], {"TYPE": "v4-32"}, "ZONE is not set; ZONE=us-central2-b would work"),
        (POD, ["create"], {"ZONE": "z"}, "TYPE is not set; TYPE=v4-32 would work"),
        (POD, ["create"], {**TPU, "TYPE": "v99-8"}, "RUNTIME is not set, and TYPE=v99-8"),
        (POD, ["create"], {**TPU, "TYPE": "tpu7x-16"}, "ACCELERATOR=tpu7x TOPOLOGY=2x2x2 would"),
        (POD, ["status"], {**TPU, "TYPE": "v7x-16", "RUNTIME": "r"}, "TYPE=v7x-16 is of a gener"),
        (POD, ["run"], TPU, "--workdir is missing"),
        (POD, ["run", "--", "--workdir=runs/a"], TPU, "--workdir=gs://BUCKET/FOLDER would work"),
        (POD, ["install", "--", "--workdir=/a"], TPU, "install takes no arguments"),
        (POD, ["create", "delete"], TPU, "create and delete are two sub-commands"),
        (POD, [], TPU, "a sub-command is missing"),
        (POD, ["destroy"], TPU, "destroy is no option"),
        (JOBSET, ["render"], {k: v for k, v in GKE.items() if k != "IMAGE"}, "IMAGE is not set"),
        (JOBSET, ["render"], {**GKE, "WORKDIR": "runs/a"}, "WORKDIR=gs://BUCKET/FOLDER would work"),
        (JOBSET, ["submit"], {**GKE, "TOPOLOGY": "4y4"}, "TOPOLOGY=4x4 would work"),
        (JOBSET, ["submit"], {**GKE, "TOPOLOGY": "1x1"}, "CHIPS_PER_HOST=1 would work"),
        (JOBSET, ["submit"], {**GKE, "SPOT": "yes"}, "SPOT=yes is neither true nor false"),
        (JOBSET, ["submit"], {**GKE, "ACCELERATOR": "tpu7x"}, "TOPOLOGY=2x2x2 would work"),
        (JOBSET, ["submit"], {**GKE, "TOPOLOGY": "2x2x2"}, "TOPOLOGY=4x4 would work"),
        (JOBSET, ["submit"], {**IRONWOOD, "CHIPS_PER_HOST": 8}, "CHIPS_PER_HOST=4 would work"),
        (JOBSET, ["submit"], {**GKE, "SLICES": "0"}, "SLICES=0 is no whole number above 0"),
        (JOBSET, ["submit"], {**GKE, "SLICES": 2, "TOPOLOGY": "2x2"}, "SLICES=1 would work"),
        (JOBSET, ["logs"], {**GKE, "SLICE": "a"}, "SLICE=0 would work"),
        (JOBSET, [], GKE, "a sub-command is missing"),
        (SLURM, [], {}, "--workdir is missing"),
        (SLURM, ["--", "--workdir=a"], {"NODES": "two"}, "NODES=two is no whole number above 0"),
        (SLURM, ["--workdir=a"], {}, "those of the program follow --"),
        (LOCAL, [], {}, "--workdir is missing"),
        (LOCAL, ["--processes"], {}, "--processes needs a number"),
        (
            LOCAL,
            ["--processes=0", "--", "--workdir=a"],
            {},
            "PROCESSES=0 is no whole number above 0",
        ),
    ],
)
def test_what_is_missing_is_named_in_one_line(name, arguments, settings, message, tmp_path):
    for option in ([], ["--dry-run"]):
        done = launch(name, *option, *arguments, cwd=tmp_path, **settings)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert message in done.stderr
        assert not done.stdout


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (POD, ["create"]),
        (JOBSET, ["submit"]),
        (SLURM, ["--", "--workdir=a"]),
    ],
)
def test_a_missing_tool_is_named(name, arguments, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "sed", "date"):
        (tools / tool).symlink_to(shutil.which(tool))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    done = launch(
        name,
        *arguments,
        cwd=tmp_path,
        VENV=tmp_path,
        **SETTINGS.get(name, {}),
        env={"PATH": str(tools)},
    )
    assert done.returncode == 2
    assert "is not there" in done.stderr


# Cloud TPU


def test_tpu_pod_asks_for_the_slice(tmp_path):
    (command,) = dry("tpu_pod.sh", "create", "--spot", cwd=tmp_path, PROJECT="my project")
    assert command[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "pod"]
    assert {
        "--accelerator-type=v4-32",
        "--runtime-version=tpu-ubuntu2204-base",
        "--node-id=pod",
        "--zone=us-central2-b",
        "--project=my project",
        "--spot",
    } <= set(command)
    (command,) = dry("tpu_pod.sh", "create", cwd=tmp_path, TYPE="v6e-16")
    assert "--spot" not in command
    assert "--runtime-version=v2-alpha-tpuv6e" in command


def test_tpu_pod_sends_and_installs_this_checkout_on_all_hosts(tmp_path):
    state, pack, send, clean, install = dry("tpu_pod.sh", "install", cwd=tmp_path)
    assert "--format=value(state.state)" in state
    assert pack[:3] == ["tar", "-C", str(ROOT)]
    assert send[4:6] == ["scp", clean[-1]]
    assert "--worker=all" in send
    assert "--worker=all" in install
    assert "'.[tpu]'" in remote(install)


@pytest.mark.parametrize("action", ["run", "resume"])
def test_tpu_pod_dry_run_keeps_the_arguments(action, tmp_path):
    command = dry("tpu_pod.sh", action, "--", *PROGRAM, cwd=tmp_path)[-1]
    assert "--worker=all" in command
    program = remote(command).partition("nohup ")[2].rpartition(" >>run.log")[0]
    words = shlex.split(program)
    assert words[words.index("-m") :] == ["-m", "moco_jax.main", "--distributed", *PROGRAM]


def test_tpu_pod_runs_other_programs(tmp_path):
    words = ["finetune", "--workdir=gs://bucket/run", "--labels=1,10"]
    command = dry("tpu_pod.sh", "run", "--", *words, cwd=tmp_path, MODULE="moco_jax.evaluate")[-1]
    program = remote(command).partition("nohup ")[2].rpartition(" >>run.log")[0]
    assert shlex.split(program)[3:] == ["-m", "moco_jax.evaluate", "--distributed", *words]


def test_tpu_pod_other_commands(tmp_path):
    (command,) = dry("tpu_pod.sh", "logs", cwd=tmp_path, WORKER=3)
    assert "--worker=3" in command
    assert remote(command) == "tail -n 50 -f moco_jax/run.log"
    (command,) = dry("tpu_pod.sh", "stop", cwd=tmp_path)
    assert 'kill -TERM "$(cat run.pid)"' in remote(command)
    (command,) = dry("tpu_pod.sh", "delete", cwd=tmp_path)
    assert command[3:6] == ["queued-resources", "delete", "pod"]
    state, running = dry("tpu_pod.sh", "status", cwd=tmp_path)
    assert state[3:5] == ["queued-resources", "list"]
    assert "--worker=all" in running
    kinds = [
        c[4] for c in dry("tpu_pod.sh", "resume", "--", *PROGRAM, cwd=tmp_path) if c[0] == "gcloud"
    ]
    assert kinds == ["list", "delete", "create", "list", "scp", "ssh", "ssh"]


def test_tpu_pod_run_stop_and_status_on_a_host(tmp_path):
    """What hosts get, executed here in place of a host.

    The arguments arrive, and TERM reaches the program.
    """
    tools, home = tmp_path / "tools", tmp_path / "home"
    stand_in(
        tools,
        "gcloud",
        "if 'list' in sys.argv: print('ACTIVE')\n"
        "if 'ssh' in sys.argv:\n"
        "    command = [a for a in sys.argv if a.startswith('--command=')][0]\n"
        "    os.chdir(os.environ['HOME'])\n"
        "    os.execvp('bash', ['bash', '-c', command.removeprefix('--command=')])\n",
    )
    stand_in(
        home,
        "python",
        "def stop(*_): print('saved', flush=True); os._exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n" + RECORD % "program" + "time.sleep(20)\n",
    )
    (home / "moco_jax/.venv/bin").mkdir(parents=True)
    (home / "moco_jax/.venv/bin/python").symlink_to(home / "python")

    def pod(*arguments):
        return launch(
            "tpu_pod.sh", *arguments, cwd=tmp_path, path=tools, **TPU, env={"HOME": str(home)}
        )

    done = pod("run", "--", *PROGRAM)
    assert done.returncode == 0, done.stderr
    try:
        wait_for((home / "program.jsonl").exists)
        wait_for(lambda: (home / "program.jsonl").read_text())
        assert recorded(home, "program") == [["-m", "moco_jax.main", "--distributed", *PROGRAM]]
        again = pod("resume", "--", *PROGRAM)
        assert again.returncode == 1
        assert "already running" in again.stdout
        assert ": running" in pod("status").stdout
    finally:
        stopped = pod("stop")
    assert "is told to end" in stopped.stdout
    wait_for(lambda: "saved" in (home / "moco_jax/run.log").read_text())
    dead = subprocess.Popen(["true"])
    dead.wait()
    (home / "moco_jax/run.pid").write_text(f"{dead.pid}\n")
    assert ": not running" in pod("status").stdout
    assert "not running" in pod("stop").stdout
    assert not list(tmp_path.rglob("x"))


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (
            ["SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE"],
            ["list", "delete", "create", "list", "list", "scp", "ssh", "ssh"],
        ),
        (
            ["SUSPENDING", "FAILED", "ACTIVE"],
            ["list", "list", "delete", "create", "list", "scp", "ssh", "ssh"],
        ),
        (["", "ACTIVE"], ["list", "create", "list", "scp", "ssh", "ssh"]),
        (["PROVISIONING", "ACTIVE"], ["list", "list", "scp", "ssh", "ssh"]),
        (["ACTIVE"], ["list", "ssh"]),
        (["error"], ["list"]),
    ],
)
def test_tpu_pod_resume_does_what_the_state_asks_for(states, expected, tmp_path):
    answer = (
        f"states = {states!r}\n"
        "if 'list' in sys.argv:\n"
        "    n = sum('\"list\"' in x for x in open(f'{HERE}/gcloud.jsonl'))\n"
        "    if states[n - 1] == 'error': sys.exit('no network')\n"
        "    print(states[n - 1])\n"
    )
    stand_in(tmp_path, "gcloud", RECORD % "gcloud" + answer)
    stand_in(tmp_path, "sleep", "")
    settings = dict(cwd=tmp_path, path=tmp_path, TMPDIR=tmp_path, **TPU)
    done = launch("tpu_pod.sh", "resume", "--spot", "--", *PROGRAM, **settings)
    calls = recorded(tmp_path, "gcloud")
    assert [c[3] for c in calls] == expected
    assert done.returncode == (1 if states == ["error"] else 0), done.stderr
    assert all("--spot" in c for c in calls if c[3] == "create")
    assert all("--quiet" in c for c in calls if c[3] == "delete")
    assert not list(tmp_path.glob("*.tar.gz"))


# GKE


def jobset(*arguments, cwd, **settings):
    done = launch("gke_jobset.sh", "render", *arguments, cwd=cwd, **{**GKE, **settings})
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_jobset_has_the_fields_that_matter(tmp_path):
    whole = jobset(cwd=tmp_path, SERVICE_ACCOUNT="writer")
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert whole["metadata"]["name"] == "pod"
    assert whole["spec"]["failurePolicy"]["maxRestarts"] == 100
    (rule,) = whole["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    job = whole["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    assert job["completionMode"] == "Indexed"
    (rule,) = job["podFailurePolicy"]["rules"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == dict(containerName=container["name"], operator="In", values=[2])
    assert pod["restartPolicy"] == "Never"
    assert pod["serviceAccountName"] == "writer"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["image"] == "registry/moco:1"
    assert container["command"] == [
        "python",
        "-m",
        "moco_jax.main",
        "--distributed",
        "--config=configs/digits.py",
        "--workdir=gs://bucket/run",
    ]


def test_jobset_settings(tmp_path):
    whole = jobset("--spot", cwd=tmp_path, TOPOLOGY="2x4", CHIPS_PER_HOST=8, MAX_RESTARTS=3)
    job = whole["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["completions"] == 1
    assert whole["spec"]["failurePolicy"]["maxRestarts"] == 3
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    assert "serviceAccountName" not in pod


def test_jobset_of_two_slices_of_tpu7x(tmp_path):
    """Each slice of 2x2x2 chips is a Job of two hosts, and all Jobs end before any starts again."""
    whole = jobset(cwd=tmp_path, **IRONWOOD | {"SLICES": 2, "HOST_NETWORK": "true"})
    placing = whole["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert placing == "cloud.google.com/gke-nodepool", "each slice has a node pool to itself"
    assert whole["spec"]["failurePolicy"]["restartStrategy"] == "BlockingRecreate"
    (slices,) = whole["spec"]["replicatedJobs"]
    assert slices["replicas"] == 2
    job = slices["template"]["spec"]
    pod = job["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (2, 2)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu7x",
        "cloud.google.com/gke-tpu-topology": "2x2x2",
    }
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert [e["name"] for e in container["env"]] == ["PYTHONUNBUFFERED"], "GKE sets the others"


def test_jobset_runs_other_programs(tmp_path):
    words = ["finetune", "--labels=1,10"]
    whole = jobset("--", *words, cwd=tmp_path, MODULE="moco_jax.evaluate", RECIPE="")
    pod = whole["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    program = ["python", "-m", "moco_jax.evaluate", "--distributed", "--workdir=gs://bucket/run"]
    assert container["command"] == [*program, *words]


def test_jobset_keeps_the_arguments(tmp_path):
    words = [*AWKWARD, "two\nlines\tand a tab", "$(HOME) $$(HOME)"]
    whole = jobset("--", *words, cwd=tmp_path)
    pod = whole["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    given = pod["containers"][0]["command"][6:]
    assert [w.replace("$$", "$") for w in given] == words
    assert all("$" not in w.replace("$$", "") for w in given), "Kubernetes has nothing to put in"


def test_jobset_is_given_to_kubectl(tmp_path):
    tools = tmp_path / "tools"
    stand_in(
        tools,
        "kubectl",
        RECORD % "kubectl" + "open(f'{HERE}/input', 'w').write(sys.stdin.read())\n",
    )
    words = ["--context=c d", "--namespace=team"]
    done = launch(
        "gke_jobset.sh",
        "submit",
        "--",
        *AWKWARD,
        cwd=tmp_path,
        path=tools,
        **GKE,
        NAMESPACE="team",
        CONTEXT="c d",
    )
    assert done.returncode == 0, done.stderr
    (call,) = recorded(tools, "kubectl")
    assert sorted(call[:2]) == words
    assert call[2:] == ["apply", "-f", "-"]
    assert yaml.safe_load((tools / "input").read_text()) == jobset(
        "--", *AWKWARD, cwd=tmp_path, NAMESPACE="team"
    )


def test_jobset_dry_runs(tmp_path):
    done = launch("gke_jobset.sh", "submit", "--dry-run", "--", *AWKWARD, cwd=tmp_path, **GKE)
    first, *text, last = done.stdout.splitlines()
    assert (first, last) == ("kubectl --namespace=default apply -f - <<'END'", "END")
    assert yaml.safe_load("\n".join(text)) == jobset("--", *AWKWARD, cwd=tmp_path)
    (command,) = dry("gke_jobset.sh", "logs", cwd=tmp_path, WORKER=2, SLICE=1)
    assert "jobset.sigs.k8s.io/job-index=1," in command[-1]
    assert command[2:4] == ["logs", "-f"]
    assert "jobset-name=pod" in command[-1]
    assert command[-1].endswith("job-completion-index=2")
    (command,) = dry("gke_jobset.sh", "delete", cwd=tmp_path)
    assert command == ["kubectl", "--namespace=default", "delete", "jobset", "pod"]


# Slurm


def test_slurm_submits_one_process_a_gpu(tmp_path):
    folder, submit = dry(
        "slurm.sh",
        "--",
        *PROGRAM,
        cwd=tmp_path,
        NODES=2,
        GPUS_PER_NODE=4,
        LOGDIR="my logs",
        PARTITION="gpu",
        ACCOUNT="us",
    )
    assert folder == ["mkdir", "-p", "my logs"]
    assert submit[0] == "sbatch"
    job = submit.index(str(LAUNCH / "slurm_job.sh"))
    assert {
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-node=4",
        "--requeue",
        "--signal=TERM@120",
        "--open-mode=append",
        "--partition=gpu",
        "--account=us",
        "--output=my logs/%x-%j.log",
    } <= set(submit[:job])
    assert submit[job + 1 :] == [f"{tmp_path}/.venv/bin/python", "300", "100", *PROGRAM]


@pytest.mark.parametrize(
    ("status", "before", "requeued"),
    [
        (0, 0, False),
        (2, 0, False),
        (1, 0, False),
        (143, 0, True),
        (143, 5, False),
        (75, 0, True),
        (75, 5, False),
        (137, 0, True),  # kill -9 of one process
    ],
)
def test_slurm_job_goes_back_into_the_queue_after_it_saved(status, before, requeued, tmp_path):
    stand_in(tmp_path, "srun", RECORD % "srun" + f"sys.exit({status})\n")
    stand_in(tmp_path, "scontrol", RECORD % "scontrol")
    slurm = dict(SLURM_JOB_ID=77, SLURM_CPUS_PER_TASK=8, SLURM_RESTART_COUNT=before)
    words = ["/venv/bin/python", "300", "5", *PROGRAM]
    done = launch("slurm_job.sh", *words, cwd=tmp_path, path=tmp_path, **slurm)
    assert done.returncode == status
    (step,) = recorded(tmp_path, "srun")
    assert "--cpus-per-task=8" in step
    start = step.index("/venv/bin/python")
    assert step[start:] == ["/venv/bin/python", "-m", "moco_jax.main", "--distributed", *PROGRAM]
    assert (tmp_path / "scontrol.jsonl").exists() == requeued
    if requeued:
        assert recorded(tmp_path, "scontrol") == [["requeue", "77"]]


# One machine

PROCESS = (
    "number = int([a for a in sys.argv if a.startswith('--process_id=')][0].partition('=')[2])\n"
    "behaviour = json.loads(os.environ['BEHAVIOUR'])[number]\n"
    "def stop(*_):\n"
    "    if behaviour != 'deaf':\n"
    "        print(f'process {number} saved', flush=True)\n"
    "        os._exit(143)\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "about = dict(pid=os.getpid(), words=sys.argv[1:], env=dict(os.environ))\n"
    "open(f'{HERE}/{number}.part', 'w').write(json.dumps(about))\n"
    "os.rename(f'{HERE}/{number}.part', f'{HERE}/{number}.json')\n"
    "print(f'process {number} speaks', flush=True)\n"
    "files = [f'{HERE}/{n}.json' for n in range(len(json.loads(os.environ['BEHAVIOUR'])))]\n"
    "while not all(map(os.path.exists, files)): time.sleep(0.01)\n"
    "time.sleep(0.2)\n"
    "if isinstance(behaviour, int): sys.exit(behaviour)\n"
    "if behaviour == 'killed': os.kill(os.getpid(), signal.SIGKILL)\n"
    "while True: time.sleep(0.05)\n"
)


@pytest.fixture
def local(tmp_path):
    """Starts `local.sh` with stand-ins that behave as told; at the end none may be left over."""
    folder = tmp_path / "a=folder with blanks"  # that `env` would take for a variable
    python = stand_in(folder, "python", PROCESS)
    started = []
    # Tests that run in a shell's background would hand on that SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(behaviour, *options, words=PROGRAM, **settings):
        env = environment(
            PYTHON=python,
            LOGDIR=folder / "logs",
            BEHAVIOUR=json.dumps(behaviour),
            GRACE=1,
            **settings,
        )
        script = ["bash", str(LAUNCH / "local.sh"), f"--processes={len(behaviour)}"]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        command = [*script, *options, "--", *words]
        started.append(subprocess.Popen(command, cwd=folder, env=env, **pipes))
        return started[-1]

    yield folder, start
    signal.signal(signal.SIGINT, before)
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
    left = []
    for place in folder.glob("?.json"):
        pid = json.loads(place.read_text())["pid"]
        try:
            os.kill(pid, signal.SIGKILL)
            left.append(pid)
        except ProcessLookupError:
            pass
    assert not left, "no process is left over"


def abouts(folder, count):
    wait_for(lambda: all((folder / f"{n}.json").exists() for n in range(count)))
    return [json.loads((folder / f"{n}.json").read_text()) for n in range(count)]


def test_local_starts_processes_that_find_each_other(local):
    folder, start = local
    run = start([0, 0], "--devices-per-process", "4", XLA_FLAGS="--xla_a=1 --xla_b=2")
    out, err = run.communicate(timeout=20)
    assert (run.returncode, err) == (0, "")
    found = abouts(folder, 2)
    for number, about in enumerate(found):
        module, name, coordinator, count, identity, *rest = about["words"]
        assert (module, name) == ("-m", "moco_jax.main")
        assert coordinator.startswith("--coordinator=127.0.0.1:")
        assert coordinator == found[0]["words"][2]
        assert (count, identity) == ("--num_processes=2", f"--process_id={number}")
        assert rest == PROGRAM
        assert about["env"]["JAX_PLATFORMS"] == "cpu"
        assert about["env"]["XLA_FLAGS"] == (
            "--xla_a=1 --xla_b=2 --xla_force_host_platform_device_count=4"
        )
        assert (folder / f"logs/process_{number}.log").read_text() == f"process {number} speaks\n"
    assert out == "process 0 speaks\n", "process 0 alone prints"
    assert not (folder / "x").exists()


def test_local_leaves_the_devices_to_jax_unless_told(local):
    folder, start = local
    run = start([0], PORT=23456)
    run.communicate(timeout=20)
    (about,) = abouts(folder, 1)
    assert run.returncode == 0
    assert "--coordinator=127.0.0.1:23456" in about["words"]
    assert not {"JAX_PLATFORMS", "XLA_FLAGS"} & set(about["env"])


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [(["wait", 3, "wait"], 3), ([2, "wait"], 2), (["wait", "killed"], 137), (["deaf", 3], 3)],
)
def test_local_ends_all_when_one_fails(local, behaviour, status):
    folder, start = local
    run = start(behaviour)
    _, err = run.communicate(timeout=20)
    assert run.returncode == status
    failed = next(n for n, b in enumerate(behaviour) if b not in ("wait", "deaf"))
    assert f"process {failed} ended with status {status}" in err
    assert ("killed" in err) == ("deaf" in behaviour)
    for number, kind in enumerate(behaviour):
        if kind == "wait":
            assert "saved" in (folder / f"logs/process_{number}.log").read_text()


@pytest.mark.parametrize(("status", "restarts"), [(75, 2), (134, 1), (2, 0)])
def test_local_starts_all_again_unless_the_command_was_wrong(local, status, restarts):
    folder, start = local
    run = start([status, "wait"], f"--restarts={restarts or 3}")
    out, err = run.communicate(timeout=20)
    assert run.returncode == status
    assert err.count("launcher: all processes start again") == restarts
    assert out == "process 0 speaks\n" * (restarts + 1)
    assert (folder / "logs/process_1.log").read_text().count("speaks") == restarts + 1


def test_local_plays_a_preemption_once(local):
    _, start = local
    run = start(["wait", "wait"], "--kill-after=1", "--kill", "1", "--restarts=1")
    said = ""
    while "start again" not in said:
        said += run.stderr.readline()
    assert "launcher: process 1 is killed, as by a preemption" in said
    assert "launcher: process 1 ended with status 137" in said
    time.sleep(1.5)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=20)
    assert run.returncode == 143
    assert "killed" not in err
    refused = start(["wait", "wait"], "--kill-after=1", "--kill=2")
    assert "KILL=2 is no number of a process, from 0 to 1" in refused.communicate()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_a_signal_on_and_waits(local, number):
    folder, start = local
    run = start(["wait", "wait"])
    abouts(folder, 2)
    run.send_signal(number)
    out, err = run.communicate(timeout=20)
    assert run.returncode == 143
    assert "process 0 saved" in out, "the last words of process 0 are printed"
    assert "process 1 saved" in (folder / "logs/process_1.log").read_text()
    assert "asked to save and end" in err


def test_local_kills_at_a_second_signal(local):
    folder, start = local
    run = start(["deaf", "deaf"])
    abouts(folder, 2)
    run.send_signal(signal.SIGTERM)
    assert "asked" in run.stderr.readline()
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=20)
    assert run.returncode == 137


def test_local_dry_run_prints_what_it_would_execute(tmp_path):
    folder, *commands = dry(
        "local.sh",
        "--processes",
        "3",
        "--devices-per-process=2",
        "--",
        *PROGRAM,
        cwd=tmp_path,
        PYTHON="my python",
        LOGDIR="my logs",
    )
    assert folder == ["mkdir", "-p", "my logs"]
    assert len(commands) == 3
    for number, command in enumerate(commands):
        assert command[0] == "env"
        assert "XLA_FLAGS=--xla_force_host_platform_device_count=2" in command
        start = command.index("my python")
        assert command[start + 1 : start + 3] == ["-m", "moco_jax.main"]
        assert command[start + 5] == f"--process_id={number}"
        assert command[start + 6 :] == PROGRAM


# Texts of any bytes


def odd_texts():
    """Control characters, what ends a line in YAML, quotes, blanks at the ends, random texts."""
    letters = [
        *map(chr, range(1, 0x100)),
        *"\u2027\u2028\u2029\ufeff\ufffd\ufffe\uffff\U0001f600\U0010ffff",
    ]
    texts = [f"a{c}b{c}" for c in letters]
    texts += [" first", "last ", ": x", "- a", "#c", "null", "~"]
    texts += ["\\n", "\\", "'", '"', "\r\n", "%d", "$(A)", "$$(A)"]
    rng = random.Random(0)
    return texts + ["".join(rng.choices(letters, k=rng.randrange(20))) for _ in range(100)]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_jobset_keeps_every_character(locale, tmp_path):
    words = odd_texts()
    whole = jobset("--", *words, cwd=tmp_path, LC_ALL=locale, IMAGE="a\x85\u2028\x07b")
    pod = whole["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "a\x85\u2028\x07b"
    given = [w.replace("$$", "$") for w in pod["containers"][0]["command"][6:]]
    assert given == words


NO_UTF8 = [
    b"\xff",
    b"a\x80b",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"\xf4\x90\x80\x80",
    b"\xe2\x82",
    b"caf\xe9",
    b"\xc3",
]


@pytest.mark.parametrize("content", NO_UTF8)
def test_jobset_refuses_what_yaml_cannot_carry(content, tmp_path):
    text = os.fsdecode(content)
    for words, settings in ((["--", text], {}), ([], {"RECIPE": text})):
        done = launch("gke_jobset.sh", "render", *words, cwd=tmp_path, **{**GKE, **settings})
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "is no UTF-8, which YAML cannot carry" in done.stderr
        assert ("RECIPE" if settings else "an argument") in done.stderr
        assert not done.stdout


def test_every_launcher_hands_on_every_character(tmp_path):
    words = ["--workdir=/w", *odd_texts(), *map(os.fsdecode, NO_UTF8)]
    for script, settings in (("slurm.sh", {}), ("local.sh", {"PROCESSES": 1})):
        printed = launch(script, "--dry-run", "--", *words, cwd=tmp_path, **settings).stdout
        line = next(x for x in printed.splitlines() if "--workdir=/w" in x)
        shown = subprocess.run(
            ["bash", "-c", f"set -- {line}; printf '%s\\0' \"$@\""], capture_output=True, check=True
        )
        given = shown.stdout.split(b"\0")[:-1]
        assert given[given.index(b"--workdir=/w") :] == list(map(os.fsencode, words))


@pytest.mark.parametrize(
    ("name", "arguments", "settings", "message"),
    [
        (JOBSET, ["delete"], {**GKE, "NAME": "--all"}, "NAME=--all is no name"),
        (JOBSET, ["logs"], {**GKE, "WORKER": "0,x=y"}, "WORKER=0,x=y is no number"),
        (POD, ["install"], {**TPU, "NAME": "../x"}, "NAME=../x is no name"),
        (POD, ["status"], {**TPU, "NAME": 'x" OR "'}, "is no name"),
        (SLURM, ["--", "--workdir=a"], {"LOGDIR": "a\\b"}, "LOGDIR=a\\b has a backslash"),
        (SLURM, ["--", "--workdir=a"], {"JOB_NAME": "a/b"}, "JOB_NAME=a/b cannot name"),
        (SLURM, ["--", "--workdir=a"], {"NODES": "1\n2\x1b[31m"}, "NODES=1\\n2?[31m is no whole"),
    ],
)
def test_texts_that_a_command_would_misread_are_refused(
    name, arguments, settings, message, tmp_path
):
    done = launch(name, "--dry-run", *arguments, cwd=tmp_path, **settings)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_slurm_log_folders_may_have_percent_signs_and_hyphens(tmp_path):
    folder, submit = dry("slurm.sh", "--", *PROGRAM, cwd=tmp_path, LOGDIR="-100%j")
    assert folder == ["mkdir", "-p", "./-100%j"]
    assert "--output=./-100%%j/%x-%j.log" in submit


def test_a_dry_run_with_a_line_break_in_a_folder_remains_one_script(tmp_path):
    commands = dry("local.sh", "--", *PROGRAM, cwd=tmp_path, LOGDIR="logs\ntouch x")
    assert [c[0] for c in commands] == ["mkdir", "env", "env"]
