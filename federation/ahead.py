"""Work ahead of who needs it: the steps of a long computation side by side, in threads, a few items deep.

The steps hand over large arrays or wait for disks, so they leave the interpreter's lock alone most of the
time. Order and results are those of doing one step after the other.
"""

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
DEPTH = 2  # items that may be ready before they are asked for


def ahead(items: Generator[T, None, None], depth: int = DEPTH) -> Generator[T, None, None]:
    """The same items in the same order, made in a thread up to ``depth`` items before they are asked for.

    What ``items`` raises is raised where its item would have come. Closing it closes ``items``.

    >>> list(ahead(number * number for number in range(4)))
    [0, 1, 4, 9]
    """
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        coming = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)
        items.close()
