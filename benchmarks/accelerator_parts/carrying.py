"""What travels to a machine without a network, beside the checkout: CIFAR-10 and ml_collections."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from moco_jax.base.errors import UserError

FOLDER = Path(".accelerator")
DATA, PACKAGES = FOLDER / "tfds", FOLDER / "packages"
# Small packages in Python alone that container images of JAX lack.
CARRIED = ("ml_collections",)
MOST = 64 * 2**20  # bytes, the checkout's own files among them


def prepare(tfds: str) -> list[str]:
    """Copy CIFAR-10's shards out of the TFDS data directory `tfds`, and the packages.

    Returns lines that say what travels.

    Raises:
        UserError: the set is not there, or all together is too large.
    """
    found = sorted(Path(tfds, "cifar10").glob("*/cifar10-train.tfrecord-*"))
    if not found:
        raise UserError(
            f"--prepare={tfds} holds no cifar10/VERSION/cifar10-train.tfrecord-*; give the data"
            " directory in which TFDS has prepared cifar10 as TFRecord"
        )
    shutil.rmtree(FOLDER, ignore_errors=True)
    version = found[-1].parent  # the newest
    target = DATA / "cifar10" / version.name
    target.mkdir(parents=True)
    for file in sorted(version.iterdir()):
        shutil.copyfile(file, target / file.name)
    for name in CARRIED:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise UserError(f"the package {name} is not installed here; pip install {name}")
        without = shutil.ignore_patterns("__pycache__", "tests")
        shutil.copytree(Path(spec.origin).parent, PACKAGES / name, ignore=without)
    carried = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    # Files that git does not ignore, tracked or not: all of them are the checkout.
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    own = sum(Path(name).lstat().st_size for name in names if name and Path(name).exists())
    if carried + own > MOST:
        raise UserError(f"{FOLDER} and the checkout have {carried + own:,} bytes, above {MOST:,}")
    return [
        f"{FOLDER} is ready: {carried / 2**20:.1f} MiB, and the checkout has {own / 2**20:.1f};"
        f" carry both, at most {MOST / 2**20:.0f} MiB"
    ]


def environment() -> dict[str, str]:
    """Return the variables by which processes find carried packages that are not installed."""
    missing = [name for name in CARRIED if importlib.util.find_spec(name) is None]
    if not missing:
        return {}
    here = [str(PACKAGES.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(here)}
