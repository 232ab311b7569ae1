"""Flags that several commands have in the same words."""

from absl import flags

from moco_jax.cli import number_flags
from moco_jax.config import registry


def encoder_of_a_run(given: flags.FlagValues) -> None:
    """Define `--step` and `--which`: the encoder of a run that a command reads."""
    number_flags.DEFINE_whole(
        "step", None, "Step of the checkpoint; left out: the last sound one.", 0, 2**31 - 1, given
    )
    flags.DEFINE_enum(
        "which",
        "query",
        registry.ENCODERS_OF_A_RUN(),
        "Which encoder: 'query', or 'key' (the momentum encoder).",
        given,
    )


def allow_change(given: flags.FlagValues) -> None:
    """Define `--allow_change`."""
    flags.DEFINE_list(
        "allow_change",
        [],
        "Recipe settings that may differ from those the workdir was begun with; 'images': the "
        "images may.",
        given,
    )
