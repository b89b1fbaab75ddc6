"""Work that is done ahead of whoever needs it, by threads, in its order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def done_ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item], *, workers: int = 0, most_ahead: int = 8
) -> Iterator[_Result]:
    """Yields ``work`` of every item in order, some of them begun before they are asked for.

    Args:
        work: Must be safe in threads.
        items: Looked at as needed.
        workers: Threads; 0 is half of the cores, at most four.
        most_ahead: Results that may wait at once, which bounds the memory.

    Raises:
        Exception: What ``work`` raised, at its item's turn.
    """
    threads = workers or max(1, min(4, (os.cpu_count() or 1) // 2))
    rest, waiting = iter(items), deque[Future[_Result]]()
    with ThreadPoolExecutor(threads, thread_name_prefix="atelier-ahead") as pool:
        try:
            while True:
                while len(waiting) < most_ahead:
                    try:
                        item = next(rest)
                    except StopIteration:
                        break
                    waiting.append(pool.submit(work, item))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for job in waiting:
                job.cancel()


class NextAhead(Generic[_Result]):
    """Makes the value after the one that was asked for, while that one is used."""

    def __init__(self, make: Callable[[int], _Result]) -> None:
        """Uses one thread; ``make`` may be called by it and by the caller's, one after the other."""
        self._make = make
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="atelier-next")
        self._begun: tuple[int, Future[_Result]] | None = None

    def get(self, number: int) -> _Result:
        """Returns the value of a number, and begins the next one's.

        Raises:
            Exception: What making the value raised.
        """
        begun, self._begun = self._begun, None
        job = begun[1] if begun is not None and begun[0] == number else self._pool.submit(self._make, number)
        value = job.result()
        self._begun = (number + 1, self._pool.submit(self._make, number + 1))
        return value

    def close(self) -> None:
        """Ends the thread; a value that was begun is thrown away."""
        self._pool.shutdown(wait=True, cancel_futures=True)
