"""What Python reads, worked on by a tf.data graph ahead of time, in a way that always comes to an end."""

import atexit
import contextlib
import logging
import os
from collections.abc import Callable, Iterator

import tensorflow as tf

AT_ONCE = 64  # rows of a batch where the reads do not say


def options(threads: int) -> tf.data.Options:
    """Results in order, on so many threads of their own."""
    chosen = tf.data.Options()
    chosen.deterministic = True
    chosen.threading.private_threadpool_size = threads
    chosen.autotune.enabled = False
    return chosen


@contextlib.contextmanager
def running(
    reads: Iterator[tuple], signature: tuple[tf.TensorSpec, ...], make: Callable, threads: int
) -> Iterator[Iterator]:
    """Batches of NumPy arrays, made ahead of time by `make` of each row of what `reads` yields.

    `signature`: of one read, arrays `[n, ...]`; its last may be shorter than n, where `[None,
    ...]` permits it. `threads`: how many work; 0 for as many as cores.

    What is under way is brought to its end before the dataset is let go: TensorFlow would wait
    for it then, and it may wait for Python, which TensorFlow holds.
    """
    threads, ending = threads or os.cpu_count() or 1, False

    def feed():
        while not ending and (read := next(reads, None)) is not None:
            yield read

    made = iter(
        tf.data.Dataset.from_generator(feed, output_signature=signature)
        .prefetch(1)
        .unbatch()
        .map(make, num_parallel_calls=threads)
        .batch(signature[0].shape[0] or AT_ONCE)
        .prefetch(2)
        .with_options(options(threads))
        .as_numpy_iterator()
    )

    def end() -> None:
        nonlocal ending
        ending = True
        over = False
        while not over:
            try:
                over = next(made, None) is None
            except tf.errors.OpError as error:
                logging.debug("while ending: %s", error)

    atexit.register(end)  # for who keeps the batches until the process ends
    try:
        yield made
    finally:
        atexit.unregister(end)
        end()
