"""A small data set in the form in which TFDS prepares one: TFRecord files and two files of JSON."""

import json
from pathlib import Path

import tensorflow as tf

from tests.data.pictures import write

SHARDS = {"train": 3, "test": 2}


def example(**features):
    """A serialized tf.train.Example of bytes and whole numbers."""
    kinds = {
        name: tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        if isinstance(value, int)
        else tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=kinds)).SerializeToString()


def write_toy(place: Path, contents, labels, classes) -> Path:
    """Write the images `contents`, with their class numbers, as both splits of tfds:toy 1.0.0."""
    folder = place / "toy/1.0.0"
    folder.mkdir(parents=True)
    splits = []
    for split, shards in SHARDS.items():
        lengths = []
        for number in range(shards):
            part = range(number * len(contents) // shards, (number + 1) * len(contents) // shards)
            lengths.append(len(part))
            with tf.io.TFRecordWriter(
                str(folder / f"toy-{split}.tfrecord-{number:05d}-of-{shards:05d}")
            ) as file:
                for n in part:
                    name = f"{split} {n}".encode()
                    file.write(example(image=contents[n], label=int(labels[n]), id=name))
        splits.append({"name": split, "shardLengths": [str(n) for n in lengths], "numBytes": "1"})
        splits[-1]["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    keys = [{"featureKey": key} for key in ("image", "label")]
    info = {
        "name": "toy",
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "moduleName": "tensorflow_datasets",
        "splits": splits,
        "supervisedKeys": {"tuple": {"items": keys}},
    }
    core = "tensorflow_datasets.core.features"
    features = {
        "id": {"pythonClassName": f"{core}.text_feature.Text", "text": {}},
        "image": {
            "pythonClassName": f"{core}.image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "3"]}},
        },
        "label": {
            "pythonClassName": f"{core}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(len(classes))},
        },
    }
    whole = {
        "pythonClassName": f"{core}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    write(
        folder,
        {
            "dataset_info.json": json.dumps(info).encode(),
            "features.json": json.dumps(whole).encode(),
            "label.labels.txt": "".join(f"{name}\n" for name in classes).encode(),
        },
    )
    return place
