"""Work that runs ahead of whoever needs its results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def run_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Iterator[Result]:
    """Yields ``function(item)`` for every item, in order, computed in ``pool``.

    Unlike ``pool.map`` it works on ``count`` items beyond the one that is asked for and no more: memory is bounded,
    and ``items`` may itself depend on results.
    """
    futures = deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) > count:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()
