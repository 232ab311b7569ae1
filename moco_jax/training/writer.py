"""A thread that writes while training goes on: jobs in the order in which they were given."""

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

Job = Callable[[], None]

ROOM = 256  # jobs that may wait: who gives more waits for the thread
IDLE = 2.0  # seconds without a job after which what is held back is looked at


class Writer:
    """Does jobs one after the other; after one has failed no other is done.

    Nothing that every host must call may be a job: hosts would come to it in different orders.
    """

    def __init__(self, before: Job, idle: Job):
        """Make ready; the thread begins with the first job.

        Args:
            before: called before each job.
            idle: called where no job came for a while.
        """
        self._before, self._idle = before, idle
        self._jobs: queue.Queue[tuple[Job, Future[None]] | None] = queue.Queue(ROOM)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def put(self, job: Job) -> Future[None]:
        """Add a job; its result is there once it and all before it are done."""
        if self._thread is None:
            # A daemon, as a job may wait for devices of which other hosts do not answer any more.
            self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
            self._thread.start()
        done: Future[None] = Future()
        self._jobs.put((job, done))
        return done

    def check(self) -> None:
        """Raise the error of the job that failed, if one has."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            try:
                some = self._jobs.get(timeout=IDLE)
            except queue.Empty:
                self._do(self._idle)
                continue
            if some is None:
                return
            job, done = some
            self._do(job)
            if self._error is None:
                done.set_result(None)
            else:
                done.set_exception(self._error)
            del some, job, done  # or a snapshot would be kept until the next job comes

    def _do(self, job: Job) -> None:
        if self._error is None:
            try:
                self._before()
                job()
            except BaseException as error:  # raised again by the run itself, in `check`
                self._error = error

    def close(self, seconds: float) -> None:
        """Do what is left, for so many seconds at most, and end the thread.

        Raises:
            Exception: what a job raised.
        """
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._jobs.put(None, timeout=seconds)
                self._thread.join(seconds)
            self._thread = None
        self.check()
