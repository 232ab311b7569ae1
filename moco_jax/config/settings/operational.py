"""The operational settings (places, devices, reports), in the order in which help shows them.

They may change whenever a run goes on.
"""

from moco_jax.config import registry
from moco_jax.config.settings.kinds import (
    LARGEST,
    Range,
    choice,
    count,
    number,
    places,
    several,
    switch,
    table,
    text,
)

STEPS = 2**31 - 1  # steps and images are counted in int32 on the devices


def _first_and_last(steps: tuple[int, ...]) -> str:
    """Say what is wrong with two `steps` between which a trace is taken; '' where nothing is."""
    return "" if steps[0] <= steps[1] else "must be a first step and a last one; try (20, 25)"


OPERATIONAL = table(
    "operational",
    {
        "images": {
            "data_dir": (
                places(""),
                "folder of images, list of paths, shards (folder or pattern), or the TFDS data "
                "directory ('': its default); '(A, B)': the images of A, then those of B",
            ),
            "eval_split": (
                text(""),
                "labelled images that the monitor classifies; '': some of the training images",
            ),
        },
        "records and scores": {
            "log_every": (
                count(10, 1, STEPS),
                "steps between lines and records",
            ),
            "monitor_every": (
                count(10, 0, 10**6),
                "epochs between kNN scores; 0: none",
            ),
            "patience": (
                count(5, 2, 10**6),
                "scores that are taken together: a run says that you can stop where so many gained "
                "nothing over as many before",
            ),
            "signals": (
                switch(False),
                "at each score also what needs no labels, of drawn views: LiDAR, alignment, "
                "uniformity, decay of the spectrum; see docs/signals.md",
            ),
            "knn_k": (
                count(200, 1, 10**6),
                "neighbours that vote in a kNN score",
            ),
            "knn_temperature": (
                number(0.1, 1e-6, 100),
                "temperature of the votes: each weighs exp(cosine / knn_temperature)",
            ),
            "knn_features": (
                choice("backbone", ("backbone", "output")),
                "what a kNN score compares: 'backbone' (pooled) or 'output' (after the head)",
            ),
            "knn_examples": (
                count(0, 0, STEPS),
                "training images that the monitor searches and a probe learns from, at most; "
                "0: all",
            ),
            "online_probe": (
                switch(True),
                "train a linear classifier beside the run, where images have labels and "
                "monitor_every is not 0; it changes nothing of what is trained",
            ),
            "eval_batch_size": (
                count(256, 1, 2**20),
                "images that are scored at once, over all devices",
            ),
        },
        "memory": {
            "remat": (
                choice("none", registry.REMATS),
                "for a ViT: 'block' computes each block again in the backward pass, to save memory",
            ),
            "attention": (
                choice("plain", registry.ATTENTIONS),
                "for a ViT: 'lean' keeps no attention weights, to save memory",
            ),
        },
        "checkpoints": {
            "checkpoint_every": (
                count(0, 0, STEPS),
                "steps between checkpoints; 0: an epoch, or as many as have 100 steps",
            ),
            "keep": (
                count(
                    2, 2, 10**6, why="where a checkpoint is damaged, the one before is gone back to"
                ),
                "latest checkpoints kept, beside the best",
            ),
        },
        "machine": {
            "cpu_devices": (
                count(0, 0, 1024),
                "devices into which a CPU is divided, where there is no other; 0: one, or what "
                "XLA_FLAGS say",
            ),
            "workers": (
                count(0, 0, 1024),
                "threads that make views; 0: as many as cores",
            ),
        },
        "guard": {
            "max_bad_steps": (
                count(10, 1, STEPS),
                "steps in a row with a loss, gradient or update that is not finite, before the run "
                "stops",
            ),
            "spike_factor": (
                number(10.0, 1, LARGEST),
                "a gradient norm this many times its running mean is reported",
            ),
        },
        "programs": {
            "deterministic": (
                switch(False),
                "on GPU: only operations that give the same bits every time",
            ),
            "compilation_cache": (
                text(""),
                "folder for compiled programs, so that a restart need not compile; '': none",
            ),
            "profile_steps": (
                several((0, 0), Range(0, STEPS), length=2, rule=_first_and_last),
                "first and last step of a profiler trace in the workdir; (0, 0): none",
            ),
        },
        "limits": {
            "max_bad_images": (
                count(100, 0, STEPS),
                "damaged images that a run replaces before it stops",
            ),
            "stop_at_step": (
                count(0, 0, STEPS),
                "step after which the run saves and ends, for a trial or a time limit; 0: the last",
            ),
            "stop_when": (
                choice("never", ("never", "no_gain")),
                "'no_gain': the run ends early, with all that belongs to an end, once its scores "
                "gain nothing (see docs/signals.md)",
            ),
        },
    },
)
