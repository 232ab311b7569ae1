"""The flags by which the processes of one command find each other; pretraining and evaluation have them."""

from absl import flags

from moco_jax.cli import number_flags
from moco_jax.parallel import hosts

DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join a run of many hosts whose addresses the platform gives."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, to join a run of several processes by hand."
)
NUM_PROCESSES = number_flags.DEFINE_whole(
    "num_processes", 1, "With --coordinator: how many there are.", 1, 2**20
)
PROCESS_ID = number_flags.DEFINE_whole(
    "process_id", 0, "With --coordinator: which this one is.", 0, 2**20
)


def join(asks_for_stops: bool) -> None:
    """Join the other processes, as the flags say; nothing may have asked for devices before. As in `hosts.start_hosts`."""
    hosts.start_hosts(
        DISTRIBUTED.value, COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, asks_for_stops
    )
