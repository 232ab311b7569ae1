"""Part 2, PyTorch's side: the same step, by itself or through `torch.compile`.

It is made ready while something else is measured, and timed when its turn comes.
"""

import time

import torch  # first: the other way round a process that has TensorFlow too may crash

# isort: split
from benchmarks.accelerator_parts.telling import given, tell, wait_for_turn
from benchmarks.steps import Case
from benchmarks.steps_torch import torch_step


def main() -> None:
    """Make the step, wait, and time it."""
    asked = given()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not asked["small"]:
        raise SystemExit("PyTorch found no accelerator here; --small tries everything on a CPU")
    case, began = Case(**asked["case"]), time.perf_counter()
    theirs = torch_step(case, asked["compiled"], device, torch.channels_last)
    loss = theirs.once()
    theirs.once()
    ready = time.perf_counter() - began
    wait_for_turn()
    seconds = theirs.seconds(asked["times"], asked["steps"])
    form = "PyTorch, channels last" + (", compile" if asked["compiled"] else "")
    tell(
        what="step",
        of=case.arch,
        form=form + (", bf16 autocast" if device == "cuda" else ""),
        batch=case.batch,
        side=case.side,
        seconds=seconds,
        images_a_second=case.batch / seconds,
        seconds_until_first=ready,
        loss=loss,
    )


if __name__ == "__main__":
    main()
