"""Guard over the steps of a run: updates not applied, and gradients far above their usual size.

It looks at a step two steps later, when its numbers are there, so that the devices never wait for
it.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from moco_jax.base.errors import UserError

LAG = 2
WARM_UP = 20
MEMORY = 0.98  # of the running mean of the gradient's norm, about fifty steps
SHOWN = 5
NEEDED = ("finite", "loss", "grad_norm")  # of a step's metrics


class Guard:
    """Reports steps that went wrong, and ends a run in which too many in a row do."""

    def __init__(
        self,
        max_bad_steps: int,
        spike_factor: float,
        name: Callable[[int], str],
        report: Callable[[int, str, str, Mapping[str, Any]], None],
        saved: Callable[[], str],
    ):
        """Create a guard before the first step.

        Args:
            max_bad_steps: steps in a row that were not applied, as something was not finite, that
                end the run.
            spike_factor: a gradient norm this many times its running mean is reported.
            name: what to call an example of the dataset.
            report: takes a step, the kind of event, a sentence on it and its facts.
            saved: says which checkpoint is good, once that is known.
        """
        self.max_bad_steps, self.spike_factor = max_bad_steps, spike_factor
        self.name, self.report, self.saved = name, report, saved
        self.waiting: deque[tuple[int, Mapping[str, Any], jax.Array]] = deque()
        self.bad: list[int] = []
        self.mean, self.count = 0.0, 0

    def observe(self, step: int, metrics: Mapping[str, Any], index: jax.Array) -> None:
        """Take in a step's metrics, and judge the step `LAG` before it.

        Args:
            step: its number.
            metrics: at least `finite`, `loss` and `grad_norm`; they may still be under way.
            index: the example indices int32 `[B]` of its batch.

        Raises:
            UserError: `max_bad_steps` in a row were not applied.
        """
        self.waiting.append((step, metrics, index))
        if len(self.waiting) > LAG:
            self._judge(*self.waiting.popleft())

    def finish(self) -> None:
        """Judge the steps that are still waiting."""
        while self.waiting:
            self._judge(*self.waiting.popleft())

    def _judge(self, step: int, metrics: Mapping[str, Any], index: jax.Array) -> None:
        values = jax.device_get({name: metrics[name] for name in NEEDED})
        finite, norm = bool(values["finite"]), float(values["grad_norm"])
        if not finite:
            self.bad.append(step)
            # A finite gradient and an update that is not: the rate, or what the optimizer adds, is
            # too large.
            overflow = math.isfinite(norm) and math.isfinite(float(values["loss"]))
            what = (
                "what the update would make of the weights is" if overflow else "loss or gradient"
            )
            self._tell(step, "skipped_step", f"{what} not finite, step not applied", norm, index)
            if len(self.bad) >= self.max_bad_steps:
                raise UserError(
                    f"max_bad_steps={self.max_bad_steps} steps in a row ({self.bad[0]} to {step}) "
                    "had a loss, gradient or update that is not finite; none was applied. "
                    f"{self.saved()}. Look at the examples named above, or go on with a lower lr: "
                    "--config.lr=... --allow_change=lr"
                )
            return
        self.bad = []
        if self.count >= WARM_UP and norm > self.spike_factor * self.mean:
            text = (
                f"gradient norm {norm:.3g}, {norm / self.mean:.0f} times its usual {self.mean:.3g}"
            )
            self._tell(step, "gradient_spike", text, norm, index)
        self.count += 1
        weight = max(1 - MEMORY, 1 / self.count)
        self.mean += weight * (norm - self.mean)

    def _tell(self, step: int, kind: str, text: str, norm: float, index: jax.Array) -> None:
        # Every host sees the same numbers, so all of them come here together.
        indices = np.asarray(multihost_utils.process_allgather(index, tiled=True)).tolist()
        names = ", ".join(self.name(i) for i in indices[:SHOWN])
        facts = {"grad_norm": norm if math.isfinite(norm) else str(norm), "indices": indices}
        more = f" and {len(indices) - SHOWN} more" if len(indices) > SHOWN else ""
        self.report(
            step, kind, f"step {step}: {text}; its examples: {names}{more} (metrics.jsonl)", facts
        )
