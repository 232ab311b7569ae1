"""Tables of images as Parquet files and as saved sets, written for tests as Hugging Face does."""

import json

import pytest

pa = pytest.importorskip("pyarrow", reason="pip install '.[parquet]'")
pytest.importorskip("pyarrow.ipc")
pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(contents, labels=None, names=(), column="image"):
    """A table of images, None for a null, with what Hugging Face says of its columns."""
    rows = [None if c is None else {"bytes": c, "path": f"{n}.jpg"} for n, c in enumerate(contents)]
    columns, kinds = {column: pa.array(rows, IMAGE)}, {column: {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels)
        kinds["label"] = {"_type": "ClassLabel", "names": list(names)} if names else {}
    said = json.dumps({"info": {"features": kinds}})
    return pa.table(columns).replace_schema_metadata({"huggingface": said})


def parquet(path, made, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(made, path, **options)
    return str(path)


def saved(folder, made, split="train", files=1, rows=3):
    """What Dataset.save_to_disk writes of a table."""
    folder.mkdir(parents=True)
    called, size = [], -(-made.num_rows // files)
    for number in range(files):
        called.append(f"data-{number:05d}-of-{files:05d}.arrow")
        part = made.slice(number * size, size)
        with (
            pa.OSFile(str(folder / called[-1]), "wb") as file,
            pa.ipc.new_stream(file, made.schema) as stream,
        ):
            stream.write_table(part, max_chunksize=rows)
    state = {"_data_files": [{"filename": name} for name in called], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    return str(folder)
