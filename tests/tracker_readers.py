"""What trackers have of the runs of a workdir, read by their own packages from local files.

`python -m tests.tracker_readers NAME WORKDIR` prints it as JSON: for each run its name, its numbers
as name -> steps in the order in which they lie, settings, events as steps and names, and pictures
as names and steps.
"""

import json
import struct
import sys
from pathlib import Path

BLOCK, HEADER = 32768, struct.Struct("<IHB")  # checksum, length, and which part of a record it is
FULL, LAST = 1, 4


def records(path):
    """The records in a file of W&B's: a LevelDB log behind seven bytes, of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = path.read_bytes(), 7, b""
    while at + HEADER.size <= len(content):
        if BLOCK - at % BLOCK < HEADER.size:  # a header never lies in two blocks
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(content, at)
        at += HEADER.size
        parts += content[at : at + length]
        at += length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def wandb(workdir):
    """Runs that W&B keeps offline: a folder for each part of a run, by the run's number."""
    runs = {}
    for folder in sorted((workdir / "wandb").glob("offline-run-*")):
        (path,) = folder.glob("*.wandb")
        run = runs.setdefault(path.stem, new(path.stem))
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run["name"] = record.run.display_name
            for item in record.config.update if kind == "config" else ():
                run["settings"][item.key] = json.loads(item.value_json)
            if kind != "history":
                continue
            row = {}
            for item in record.history.item:  # of media each fact is an item
                name, *inner = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                row[name] = {**row.get(name, {}), inner[0]: value} if inner else value
            for name, value in row.items():
                if isinstance(value, dict) and value["_type"] == "table-file":
                    table = json.loads((folder / "files" / value["path"]).read_text())
                    run["events"] = [each[:2] for each in table["data"]]
                elif isinstance(value, dict):
                    run["pictures"].append([name, row["_step"]])
                elif not name.startswith("_"):
                    run["numbers"].setdefault(name, []).append(row["_step"])
    return list(runs.values())


def new(name):
    return {"name": name, "numbers": {}, "settings": {}, "events": [], "pictures": []}


def mlflow(workdir):
    """Runs of the experiment of moco_jax, wherever MLflow is told to keep them."""
    import mlflow

    client, runs = mlflow.MlflowClient(), []
    experiment = client.get_experiment_by_name("moco_jax")
    for found in client.search_runs([experiment.experiment_id]):
        run, number = new(found.info.run_name), found.info.run_id
        run["status"], run["tags"] = found.info.status, sorted(found.data.tags)
        for name in found.data.metrics:
            steps = [metric.step for metric in client.get_metric_history(number, name)]
            run["numbers"][name] = steps
        run["settings"] = found.data.params
        text = mlflow.artifacts.load_text(f"{found.info.artifact_uri}/events.txt")
        run["events"] = [[int(line.split()[1]), line.split()[2]] for line in text.splitlines()]
        for file in client.list_artifacts(number, "images"):
            if file.path.endswith(".png"):
                name, _, step, *_ = Path(file.path).name.split("+")
                run["pictures"].append([name, step])
        runs.append(run)
    return runs


def trackio(workdir):
    """Runs of the project of moco_jax, wherever Trackio is told to keep them."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    runs = []
    for found in trackio.Api().runs("moco_jax"):
        run = new(found.name)
        for row in SQLiteStorage.get_logs("moco_jax", found.name, run_id=found.id):
            for name, value in row.items():
                if isinstance(value, dict):
                    run["pictures"].append([name, row["step"]])
                elif name not in ("step", "timestamp"):
                    run["numbers"].setdefault(name, []).append(row["step"])
        run["settings"] = found.config
        run["events"] = [[alert["step"], alert["title"]] for alert in reversed(found.alerts())]
        runs.append(run)
    return runs


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
