"""A self-test of the compiler: computations whose right results are known.

Compilers have had faults that are silent: jaxlib 0.10.2 gives wrong sums on CPUs (jax issue 39103).
The questions are those
that a train step asks: products, sums over few and many rows, a convolution and its gradients. All
numbers are small whole numbers, so that the right answer is the same to the bit in every precision
that a device may use.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from moco_jax.base.errors import UserError

# One more than a multiple of what a CPU's compiler gives to a thread: the last row is a block of
# its own.
ROWS = 32_769
LARGEST = 251  # below it, whole numbers are exact in bfloat16

Arrays = dict[str, np.ndarray]


def require_right() -> None:
    """Refuse a compiler that computes wrong values on this process's first device.

    Raises:
        UserError: the answers that are wrong, the version, and what to install.
    """
    wrong = wrong_answers(jax.jit)
    if wrong:
        device = jax.local_devices()[0]
        raise UserError(
            f"jaxlib {jaxlib.__version__} computes wrong values on {device.device_kind} "
            f"({'; '.join(wrong)}); install another version: pip install --upgrade "
            "'jax!=0.10.2,!=0.11.0'"
        )


def wrong_answers(compiled: Callable[[Callable], Callable]) -> list[str]:
    """Run all computations, and describe each wrong result beside the right one.

    Args:
        compiled: makes a program of a pure function; `jax.jit`.
    """
    questions = given()
    answers = {name: np.asarray(x) for name, x in compiled(asked)(questions).items()}
    return [
        f"{name}: {_first_difference(answers[name], right)}"
        for name, right in known(questions).items()
        if not np.array_equal(answers[name], right)
    ]


def _first_difference(answer: np.ndarray, right: np.ndarray) -> str:
    if answer.shape != right.shape:
        return f"shape {answer.shape} for {right.shape}"
    place = tuple(np.argwhere(answer != right)[0].tolist())
    count = np.count_nonzero(answer != right)
    return f"{answer[place]:g} for {right[place]:g}, {count} of {right.size} values differ"


def given() -> Arrays:
    """Make the operands: float32 arrays of whole numbers."""
    draw = np.random.default_rng(0).integers
    rows = np.zeros((ROWS, 3))
    rows[:, 0] = np.arange(ROWS) % LARGEST
    operands = {
        "rows": rows,
        "square": np.eye(3),
        "left": draw(-8, 9, (48, 100)),
        "right": draw(-8, 9, (100, 32)),
        "images": draw(-4, 5, (4, 9, 8, 16)),
        "kernel": draw(-4, 5, (3, 3, 16, 8)),
        "gradient": draw(-4, 5, (4, 9, 8, 8)),
        "strided": draw(-4, 5, (4, 5, 4, 8)),
    }
    return {name: x.astype(np.float32) for name, x in operands.items()}


def asked(x: dict[str, Any]) -> dict[str, jax.Array]:
    """Compute all results with JAX, as one program, from operands that `given` makes."""

    def convolve(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            [(1, 1)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    answers = {
        "sums of products by row": jax.vmap(lambda row: jnp.sum((x["square"] @ row) ** 2))(
            x["rows"]
        ),
        "product": x["left"] @ x["right"],
        "sum by channel": jnp.sum(x["images"], (0, 1, 2)),
        "sum of squares by channel": jnp.sum(x["images"] ** 2, (0, 1, 2)),
        "largest by row": jnp.max(x["left"], 1),
    }
    for stride, gradient in ((1, x["gradient"]), (2, x["strided"])):
        out, back = jax.vjp(lambda i, k, s=stride: convolve(i, k, s), x["images"], x["kernel"])
        images, kernel = back(gradient)
        answers |= {
            f"convolution of stride {stride}": out,
            f"its gradient by images, stride {stride}": images,
            f"its gradient by kernel, stride {stride}": kernel,
        }
    return answers


def known(x: Arrays) -> Arrays:
    """Compute the right results with NumPy in float64."""
    x = {name: array.astype(np.float64) for name, array in x.items()}
    answers = {
        "sums of products by row": ((x["rows"] @ x["square"].T) ** 2).sum(1),
        "product": x["left"] @ x["right"],
        "sum by channel": x["images"].sum((0, 1, 2)),
        "sum of squares by channel": (x["images"] ** 2).sum((0, 1, 2)),
        "largest by row": x["left"].max(1),
    }
    for stride, gradient in ((1, x["gradient"]), (2, x["strided"])):
        out, images, kernel = _convolution(x["images"], x["kernel"], gradient, stride)
        answers |= {
            f"convolution of stride {stride}": out,
            f"its gradient by images, stride {stride}": images,
            f"its gradient by kernel, stride {stride}": kernel,
        }
    return answers


def _convolution(
    images: np.ndarray, kernel: np.ndarray, gradient: np.ndarray, stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute a convolution padded by one pixel and its gradients, tap by tap."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = gradient.shape[1:3]
    out, by_images, by_kernel = (
        np.zeros_like(gradient),
        np.zeros_like(padded),
        np.zeros_like(kernel),
    )
    for row in range(3):
        for column in range(3):
            below = np.s_[
                :, row : row + stride * height : stride, column : column + stride * width : stride
            ]
            tap = kernel[row, column]
            out += padded[below] @ tap
            by_images[below] += gradient @ tap.T
            by_kernel[row, column] = np.tensordot(padded[below], gradient, ((0, 1, 2), (0, 1, 2)))
    return out, by_images[:, 1:-1, 1:-1], by_kernel
