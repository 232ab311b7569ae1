"""Flags by which the processes of one command find each other."""

from absl import flags

from moco_jax.cli import number_flags


def define(given: flags.FlagValues) -> None:
    """Define the flags."""
    flags.DEFINE_bool(
        "distributed",
        False,
        "Join a run of several hosts; the platform knows their addresses.",
        given,
    )
    flags.DEFINE_string(
        "coordinator",
        "",
        "HOST:PORT of process 0, to join a run of several processes by hand.",
        given,
    )
    number_flags.DEFINE_whole(
        "num_processes", 1, "With --coordinator: how many processes there are.", 1, 2**20, given
    )
    number_flags.DEFINE_whole(
        "process_id", 0, "With --coordinator: which process this is, from 0.", 0, 2**20, given
    )


def join(given: flags.FlagValues, asks_for_stops: bool) -> None:
    """Join the other processes as the flags say, before anything asks JAX for its devices.

    `asks_for_stops`: as of `joining.start_hosts`.
    """
    from moco_jax.parallel import joining

    joining.start_hosts(
        given.distributed,
        given.coordinator,
        given.num_processes,
        given.process_id,
        asks_for_stops,
    )
