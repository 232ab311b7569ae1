"""Part 1: whether the device computes what it should, in each precision that a run may use.

The right answers are NumPy's in float64, and those of the independent PyTorch step that the tests
compare with, which computes in float64 on the host.
"""

import contextlib
import importlib.metadata
import platform
from typing import Any, NamedTuple

import torch  # first: the other way round a process that has TensorFlow too may crash

# isort: split
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from benchmarks.accelerator_parts.telling import given, require_accelerator, tell
from moco_jax import encoders
from moco_jax.method import step
from moco_jax.parallel import known_answers, xla_flags
from tests import smallest  # noqa: F401 - makes its encoders known
from tests.encoders import narrow
from tests.method import test_step, torch_moco

STEPS, SLOTS = 5, 3
# Largest relative difference that counts as rounding, of losses, queue and changes of parameters.
BOUNDS = {"float32, highest": 1e-5, "float32": 0.03, "bfloat16": 0.1}
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8}  # of a result, relative


class Reference(NamedTuple):
    """Some steps of the PyTorch writing in float64, and with what they began.

    Attributes:
        before, after: parameters and BatchNorm statistics of the query encoder.
        queue, queue_after: keys `[K, C]`.
        images: query and key views of each step.
        losses: one a step.
    """

    before: Any
    after: Any
    queue: np.ndarray
    queue_after: np.ndarray
    images: list[list[np.ndarray]]
    losses: list[float]


def encoder_of(dtype: Any) -> Any:
    """Make the small ResNet of the step's test, which computes in `dtype`."""
    options = dict(width=narrow.WIDTH, bn_groups=test_step.G, dtype=dtype)
    return encoders.create("resnet6", head="mlp", dim=test_step.DIM, **options)


def reference() -> Reference:
    """Take the steps in PyTorch, on the host."""
    t = test_step
    torch.manual_seed(0)
    net, rng = torch_moco.make_encoder("mlp", t.DIM, t.G), np.random.default_rng(0)
    queue = rng.normal(size=(SLOTS * t.B, t.DIM))
    queue /= np.linalg.norm(queue, axis=1, keepdims=True)
    settings = dict(momentum=t.M, temperature=t.TAU, groups=t.G, span=t.S, weight_decay=t.DECAY)
    moco = torch_moco.MoCo(net, torch.tensor(queue), symmetric=False, **settings)
    encoder = encoder_of(jnp.float32)
    before = jax.tree.map(np.array, t.our_variables(moco.q, "mlp", encoder))
    images = [t.views(rng) for _ in range(STEPS)]

    def prepare(x: np.ndarray) -> torch.Tensor:
        return torch.tensor((x / 255.0 - t.MEAN) / t.STD).permute(0, 3, 1, 2)

    losses = [moco.step(prepare(first), prepare(second), t.LR)[0] for first, second in images]
    after = jax.tree.map(np.array, t.our_variables(moco.q, "mlp", encoder))
    return Reference(before, after, queue, moco.queue.numpy(), images, losses)


def flat(tree: Any) -> np.ndarray:
    """Return all numbers of `tree` as one vector."""
    return np.concatenate(
        [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]
    )


def differences(theirs: Reference, dtype: Any) -> dict[str, float]:
    """Take the same steps here, computed in `dtype`: relative differences by what differs."""
    t, encoder = test_step, encoder_of(dtype)
    before = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), theirs.before)
    state = t.new_state(encoder, t.B, SLOTS)
    keys = jnp.asarray(theirs.queue.reshape(SLOTS, t.B, t.DIM), jnp.float32)
    state = state.replace(
        params=before["params"],
        key_params=before["params"],
        batch_stats=before["batch_stats"],
        key_batch_stats=before["batch_stats"],
        dictionary=state.dictionary.replace(keys=keys),
    )
    train_step, losses = jax.jit(t.make_step(encoder, dtype=dtype)), []
    for first, second in theirs.images:
        batch = step.Batch(first, second, np.arange(t.B, dtype=np.int32))
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
    start = flat(theirs.before["params"])
    return {
        "loss": float(np.max(np.abs(np.subtract(losses, theirs.losses) / theirs.losses))),
        "queue": float(
            t.relative(state.dictionary.keys.reshape(SLOTS * t.B, t.DIM), theirs.queue_after)
        ),
        "change of parameters": float(
            t.relative(flat(state.params) - start, flat(theirs.after["params"]) - start)
        ),
        "BatchNorm statistics": float(
            t.relative(flat(state.batch_stats), flat(theirs.after["batch_stats"]))
        ),
    }


def wrong_answers(dtype: str) -> list[str]:
    """Return the known answers that are wrong on this device, with operands of `dtype`.

    All operands are whole numbers that bfloat16 holds exactly; its results may be rounded once.
    """
    if dtype == "float32":
        return known_answers.wrong_answers(jax.jit)
    questions = known_answers.given()
    operands = {name: jnp.asarray(x, dtype) for name, x in questions.items()}
    found = {
        name: np.asarray(x, np.float64)
        for name, x in jax.jit(known_answers.asked)(operands).items()
    }
    right = known_answers.known(questions)
    # A sum of squares is rounded before it is summed: its terms are above what bfloat16 holds.
    exact = [name for name in right if "sums of products" not in name and "squares" not in name]
    far = {
        name: np.abs(found[name] - right[name]) > ROUNDING[dtype] * np.abs(right[name])
        for name in exact
    }
    return [
        f"{name}: {np.count_nonzero(x)} of {x.size} values" for name, x in far.items() if x.any()
    ]


def tell_machine() -> None:
    """Hand over what this machine is."""
    device, names = jax.devices()[0], ("jax", "jaxlib", "flax", "numpy", "torch")
    memory = (device.memory_stats() or {}).get("bytes_limit", 0)
    tell(
        what="machine",
        host=machine.describe(),
        device=device.device_kind,
        backend=jax.default_backend(),
        gigabytes=round(memory / 1e9, 1),
        python=platform.python_version(),
        versions={name: importlib.metadata.version(name) for name in names},
    )


def tell_float64() -> None:
    """Run the step's test itself: five steps equal PyTorch's to 1e-8 in float64."""
    try:
        with jax.enable_x64(True):
            test_step.test_five_steps_equal_pytorch(None, "linear", False)
    except AssertionError as error:
        tell(what="five steps beside PyTorch", precision="float64", right=False, why=str(error))
    else:
        tell(what="five steps beside PyTorch", precision="float64", right=True, bound=1e-8)


def main() -> None:
    """Ask for all answers, the cheapest first."""
    xla_flags.set_up()
    require_accelerator(given()["small"])
    tell_machine()
    for dtype in ROUNDING:
        wrong = wrong_answers(dtype)
        tell(what="known answers", precision=dtype, right=not wrong, wrong=wrong)
    theirs = reference()
    for name, bound in BOUNDS.items():
        dtype, _, precision = name.partition(", ")
        exact = jax.default_matmul_precision(precision) if precision else contextlib.nullcontext()
        with exact:
            found = differences(theirs, jnp.dtype(dtype))
        right = max(found.values()) < bound
        what = "five steps beside PyTorch"
        tell(what=what, precision=name, right=right, bound=bound, differences=found)
    tell_float64()


if __name__ == "__main__":
    main()
