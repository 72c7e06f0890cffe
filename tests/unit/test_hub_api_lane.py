"""Work is done in a few threads, in turn; what it raises reaches who asked, and the threads end with the lane."""

import asyncio
import gc
import threading
import time
from functools import partial

import pytest

from hub.api.lane import Lane

NAME = "fedhub-lane"


def of_lanes() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == NAME}


def test_what_work_returns_or_raises_reaches_the_one_who_asked() -> None:
    async def ask() -> None:
        lane = Lane(1)
        assert await lane.do(partial(divmod, 7, 2)) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await lane.do(partial(divmod, 7, 0))
        assert await lane.do(threading.current_thread) is await lane.do(threading.current_thread)

    asyncio.run(ask())


def test_one_thread_does_one_thing_at_a_time_and_in_turn() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.001)
        return number

    async def ask() -> None:
        lane = Lane(1)
        asked = [lane.do(partial(work, number)) for number in range(20)]
        assert await asyncio.gather(*asked) == begun == list(range(20))

    asyncio.run(ask())


def test_work_whose_caller_has_gone_harms_nobody_else() -> None:
    async def ask() -> None:
        lane, go_on = Lane(1), threading.Event()
        waiting = asyncio.create_task(lane.do(go_on.wait))
        await asyncio.sleep(0)
        waiting.cancel()
        go_on.set()
        assert await lane.do(lambda: "next") == "next"

    asyncio.run(ask())


def test_work_that_ends_after_its_loop_harms_nobody_else() -> None:
    lane, go_on = Lane(1), threading.Event()

    async def leave() -> None:
        task = asyncio.create_task(lane.do(go_on.wait))
        await asyncio.sleep(0)
        task.cancel()

    async def ask() -> str:
        return await lane.do(lambda: "next")

    asyncio.run(leave())
    go_on.set()
    assert asyncio.run(ask()) == "next"


def test_threads_start_with_work_and_end_with_their_lane() -> None:
    before, lane = of_lanes(), Lane(3)

    async def ask(lane: Lane) -> None:
        await asyncio.gather(*(lane.do(partial(time.sleep, 0.001)) for _ in range(5)))

    assert of_lanes() == before
    asyncio.run(ask(lane))
    mine = of_lanes() - before
    assert len(mine) == 3
    del lane
    gc.collect()
    for thread in mine:
        thread.join(5)
        assert not thread.is_alive()
