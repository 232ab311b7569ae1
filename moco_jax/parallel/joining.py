"""Joining several processes to one run, before anything else asks JAX for devices."""

import contextlib
import functools

import jax
from jax._src import distributed
from jax._src.lib import _jax, utils

from moco_jax.base.errors import Busy, UserError
from moco_jax.base.text import printable
from moco_jax.parallel import failures


def start_hosts(
    distributed: bool, coordinator: str, num_processes: int, process_id: int, asks_for_stops: bool
) -> None:
    """Join the processes of one run, before anything else asks for devices.

    Args:
        distributed: the platform knows the addresses (Cloud TPU, GKE, Slurm).
        coordinator: else HOST:PORT of process 0; empty for a run of one process.
        num_processes: how many there are.
        process_id: which of them this is, from 0.
        asks_for_stops: whether SIGTERM is left to JAX's preemption service, because the program
            asks it after every step; else SIGTERM ends the process.
    """
    jax.config.update("jax_enable_preemption_service", asks_for_stops)
    if num_processes > 1 and not coordinator:
        raise UserError(
            f"--num_processes={num_processes} needs --coordinator=HOST:PORT, the address of "
            "process 0"
        )
    if coordinator and not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} is not below --num_processes={num_processes}; ids count "
            "from 0"
        )
    if coordinator or distributed:
        by_hand = (coordinator, num_processes, process_id) if coordinator else (None, None, None)
        _join(*by_hand)


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Call `jax.distributed.initialize` so, and watch over the other processes from then on.

    Raises:
        Busy: the others did not come.
    """
    real = _jax.get_distributed_runtime_client
    if failures.catch_aborts() is not None:
        # There is no public way to be asked before JAX ends the process.
        client = functools.partial(real, missed_heartbeat_callback=failures.lost)
        _jax.get_distributed_runtime_client = client
    # What JAX logs of a process that was lost takes many lines; `failures` says it in one.
    with contextlib.suppress(AttributeError):
        utils.absl_set_min_log_level(3)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=failures.HEARTBEAT,
        )
    except jax.errors.JaxRuntimeError as error:
        reason = printable(str(error).splitlines()[0])
        raise Busy(
            f"the processes of this run did not find each other ({reason}); start all of them, and "
            "see that process 0 can be reached from all hosts"
        ) from error
    finally:
        _jax.get_distributed_runtime_client = real
    joined = distributed.global_state
    if joined.num_processes > 1:
        failures.begin(joined.client, joined.process_id, joined.num_processes)
