"""A world with its own clock, in which threads take turns in an order that a seed draws.

Nothing really waits.
"""

import random
import threading


class Killed(BaseException):
    """Ends the thread of a process that was killed."""


class World:
    """Time and order of processes, each a thread.

    Every `sleep` hands over to another process; an `interrupt` may be a moment, a suspension, or
    the last that a process does.
    """

    def __init__(self, seed, suspensions=(), kills=0.0):
        """Draw from `seed` which process is next, and what becomes of each `interrupt`.

        Args:
            seed: of all that is drawn.
            suspensions: seconds for which an `interrupt` may hold a process up.
            kills: how likely an `interrupt` ends its process.
        """
        self.random = random.Random(seed)
        self.now, self.events, self.dead = 0.0, [], set()
        self._suspensions, self._kills = suspensions, kills
        self._due, self._turns, self._error = {}, {}, None
        self._handed_over = threading.Semaphore(0)
        self._names = threading.local()

    def clock(self):
        return self.now

    def note(self, what):
        self.events.append((self.now, self._names.own, what))

    def sleep(self, seconds):
        name = self._names.own
        self._due[name] = self.now + seconds
        self._handed_over.release()
        self._turns[name].acquire()

    def interrupt(self):
        """A moment in which others may come between."""
        if self.random.random() < self._kills:
            raise Killed
        held_up = self._suspensions and self.random.random() < 0.02
        self.sleep(
            self.random.choice(self._suspensions) if held_up else self.random.choice([0, 0, 0.01])
        )

    def run(self, processes):
        """Call the functions `processes`, by name, beside each other, until all have ended."""
        threads = []
        for name, (begin, function) in processes.items():
            self._due[name], self._turns[name] = begin, threading.Semaphore(0)
            threads.append(threading.Thread(target=self._live, args=(name, function), daemon=True))
            threads[-1].start()
        while self._due:
            self.now = max(self.now, min(self._due.values()))
            assert self.now < 10_000, "somebody waits for ever"
            name = self.random.choice([n for n, due in self._due.items() if due <= self.now])
            self._turns[name].release()
            self._handed_over.acquire()
        for thread in threads:
            thread.join()
        if self._error:
            raise self._error

    def _live(self, name, function):
        self._names.own = name
        self._turns[name].acquire()
        try:
            function()
        except Killed:
            self.dead.add(name)
            self.note("killed")
        except BaseException as error:
            self._error = error
        finally:
            del self._due[name]
            self._handed_over.release()
