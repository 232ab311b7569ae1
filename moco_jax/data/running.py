"""tf.data prefetching over a Python reader, with guaranteed shutdown."""

import atexit
import contextlib
import logging
import os
from collections.abc import Callable, Iterator

import tensorflow as tf

from moco_jax.base.errors import Busy, UserError

AT_ONCE = 64  # rows of a batch where the shape of the reads does not fix them


def options(threads: int) -> tf.data.Options:
    """Return tf.data options: results in order, on a thread pool of this size."""
    chosen = tf.data.Options()
    chosen.deterministic = True
    chosen.threading.private_threadpool_size = threads
    chosen.autotune.enabled = False
    return chosen


@contextlib.contextmanager
def running(
    reads: Iterator[tuple], signature: tuple[tf.TensorSpec, ...], make: Callable, threads: int
) -> Iterator[Iterator]:
    """Yield batches of NumPy arrays that `make` computes ahead of time from what `reads` yields.

    An OSError, UserError or Busy of `reads` is raised behind the batches of what was read before.

    `make` is called in the graph for each row of a read. `signature`: of one read, arrays `[n,
    ...]`; the last read may be shorter than n, where `[None, ...]` permits it. `threads`: how
    many work; 0 for as many as cores.

    Work under way is finished before the dataset is released. TensorFlow would otherwise wait
    for it while it holds Python, for which the work may wait.
    """
    threads, ending = threads or os.cpu_count() or 1, False
    # The graph functions say tf.cond where they mean it: rewriting them as AutoGraph does would
    # only make each start a second slower.
    make = tf.autograph.experimental.do_not_convert(make)
    failures: list[Exception] = []

    def feed():
        try:
            while not ending and (read := next(reads, None)) is not None:
                yield read
        except (OSError, UserError, Busy) as error:  # TensorFlow would tell it as its own
            failures.append(error)

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

    def batches() -> Iterator:
        yield from made
        if failures:
            raise failures[0]

    atexit.register(end)  # for callers that keep the batches until the process ends
    try:
        yield batches()
    finally:
        atexit.unregister(end)
        end()
