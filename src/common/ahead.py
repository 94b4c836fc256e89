"""Work that runs ahead of whoever needs its results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


@contextmanager
def thread_pool(workers: int) -> Iterator[Executor]:
    """A pool of threads. When the block ends, by an error or a request to stop, what has not begun is dropped."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def run_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], count: int, at_once: bool = False
) -> Iterator[Result]:
    """Yields ``function(item)`` for every item, in order, computed in ``pool``.

    Unlike ``pool.map`` it works on ``count`` items beyond the one that is asked for and no more: memory is bounded,
    and ``items`` may itself depend on results.

    Args:
        pool: Where ``function`` is called.
        function: What to do.
        items: To what.
        count: How many items it may be ahead.
        at_once: Yield a result as soon as it is there, rather than keep the pool ahead of the caller.
    """
    futures = deque()
    for item in items:
        futures.append(pool.submit(function, item))
        while len(futures) > count or (at_once and futures and futures[0].done()):
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()
