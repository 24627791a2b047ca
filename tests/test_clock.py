"""Deadlines and virtual time: on time, never early, and no cancellation that outlives its block."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings, strategies as st

from fastllm.clock import Sweeper, SystemClock
from fastllm.testing.clock import DeadlockError, VirtualClock, VirtualLoop, run_virtual

seconds = st.one_of(
    st.floats(0.0, 0.1), st.floats(0.1, 12.0), st.floats(9.9, 2000.0), st.sampled_from([0.02, 0.04, 10.0, 600.0])
)
starts = st.floats(0.0, 5000.0)


def late(allowed: float) -> float:
    """How late a deadline of so many seconds may be."""
    return 0.5 + 1e-6 if allowed > 10 else 0.02 + 1e-6


@given(start=starts, allowed=seconds)
@settings(max_examples=200)
def test_a_deadline_never_fires_early_and_hardly_late(start: float, allowed: float) -> None:
    async def scenario() -> float:
        clock = VirtualClock()
        await clock.sleep(start)
        begun = clock.now()
        with pytest.raises(TimeoutError), clock.deadline(allowed):
            await clock.sleep(1e6)
        return clock.now() - begun

    took = run_virtual(scenario)
    assert allowed - 1e-9 * max(1.0, start) <= took <= allowed + late(allowed)


@given(jobs=st.lists(st.tuples(st.floats(0.0, 30.0), seconds, st.floats(0.0, 60.0)), min_size=1, max_size=30))
@settings(max_examples=100)
def test_many_deadlines_each_end_their_own_block_and_no_other(jobs: list[tuple[float, float, float]]) -> None:
    async def one(clock: VirtualClock, start: float, allowed: float, work: float) -> None:
        await clock.sleep(start)
        begun = clock.now()
        try:
            with clock.deadline(allowed) as deadline:
                await clock.sleep(work)
            assert not deadline.expired and work <= allowed + late(allowed)
        except TimeoutError:
            assert deadline.expired and allowed - 1e-6 <= clock.now() - begun <= allowed + late(allowed)
        await clock.sleep(2000)  # a block that was left never fires later
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0

    async def scenario() -> str:
        clock = VirtualClock()
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(one(clock, *job))
        await clock.sleep(4000)
        return repr(clock)

    assert "<Sweeper 0 deadlines in 0 buckets>" in run_virtual(scenario)


@given(depth=st.lists(st.floats(0.01, 20.0), min_size=1, max_size=6))
@settings(max_examples=100)
def test_of_nested_deadlines_the_first_due_ends_all_blocks_inside_it(depth: list[float]) -> None:
    async def nest(clock: VirtualClock, left: list[float], expired: list[int], level: int = 0) -> None:
        if not left:
            await clock.sleep(1e6)
            return
        try:
            with clock.deadline(left[0]):
                await nest(clock, left[1:], expired, level + 1)
        except TimeoutError:
            expired.append(level)
            raise

    async def scenario() -> tuple[float, list[int]]:
        clock = VirtualClock()
        expired: list[int] = []
        with pytest.raises(TimeoutError):
            await nest(clock, depth, expired)
        took = clock.now()
        await clock.sleep(100)  # no cancellation is left over
        return took, expired

    took, expired = run_virtual(scenario)
    assert min(depth) - 1e-6 <= took <= min(d + late(d) for d in depth)
    assert expired[-1] == 0 and expired == sorted(expired, reverse=True)


def test_none_is_no_deadline() -> None:
    async def scenario() -> float:
        clock = VirtualClock()
        with clock.deadline(None) as deadline:
            await clock.sleep(1e6)
        assert not deadline.expired
        return clock.now()

    assert run_virtual(scenario) == 1e6


Block = Callable[[VirtualClock, float], Awaitable[str]]


async def ours(clock: VirtualClock, allowed: float) -> str:
    try:
        with clock.deadline(allowed):
            await clock.sleep(1000)
        return "done"
    except TimeoutError:
        return "timeout"


async def standard(clock: VirtualClock, allowed: float) -> str:
    try:
        async with asyncio.timeout(allowed):
            await clock.sleep(1000)
        return "done"
    except TimeoutError:
        return "timeout"


@pytest.mark.parametrize("block", [ours, standard])
@pytest.mark.parametrize("deadline_first", [True, False])
def test_an_outer_cancellation_in_the_same_tick_is_not_swallowed(block: Block, deadline_first: bool) -> None:
    """Whoever comes first, CancelledError reaches the caller, exactly as with asyncio.timeout."""

    async def scenario() -> tuple[bool, int]:
        clock = VirtualClock()
        loop = asyncio.get_running_loop()
        task: asyncio.Task[str]
        if deadline_first:
            task = asyncio.create_task(block(clock, 1.0))
            await asyncio.sleep(0)
            loop.call_at(1.02 if block is ours else 1.0, lambda: task.cancel())
        else:
            loop.call_at(1.02 if block is ours else 1.0, lambda: task.cancel())
            task = asyncio.create_task(block(clock, 1.0))
        await asyncio.wait([task])
        return task.cancelled(), task.cancelling()

    assert run_virtual(scenario) == (True, 1)


@pytest.mark.parametrize(
    "block",
    [
        ours,
        pytest.param(
            standard,
            marks=pytest.mark.skipif(sys.version_info < (3, 11, 7), reason="asyncio.timeout of 3.11.2 is wrong here"),
        ),
    ],
)
def test_inside_clean_up_of_a_cancelled_task_a_deadline_still_means_timeout(block: Block) -> None:
    """A cancellation from before the block does not turn its expiry into another CancelledError."""

    async def body(clock: VirtualClock) -> str:
        try:
            await clock.sleep(100)
        except asyncio.CancelledError:
            return await block(clock, 1.0)
        return "never"

    async def scenario() -> str:
        clock = VirtualClock()
        task = asyncio.create_task(body(clock))
        await clock.sleep(1)
        task.cancel()
        return await task

    assert run_virtual(scenario) == "timeout"


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_a_body_that_ends_as_its_deadline_expires_leaks_no_cancellation(offset: int) -> None:
    """Result and expiry in one iteration, in each order: the next await of the task is never cancelled."""

    async def scenario() -> str:
        clock = VirtualClock()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        if offset < 0:
            loop.call_at(0.06, answer.set_result, "answer")
        try:
            with clock.deadline(0.05):
                if offset >= 0:
                    loop.call_at(0.06 if offset == 0 else 0.0600001, _set, answer)
                result = await answer
        except TimeoutError:
            result = "timeout"
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0
        await asyncio.sleep(0)
        await clock.sleep(1)
        return result

    assert run_virtual(scenario) in ("answer", "timeout")


def _set(future: asyncio.Future[str]) -> None:
    if not future.done():
        future.set_result("answer")


@given(delays=st.lists(st.integers(0, 6), min_size=1, max_size=20), allowed=st.integers(1, 6))
@settings(max_examples=150)
def test_whatever_the_timing_each_task_goes_on_uncancelled(delays: list[int], allowed: int) -> None:
    """Work and deadlines that fall on the same ticks over and over: only TimeoutError, only inside the block."""

    async def one(clock: VirtualClock, delay: int) -> None:
        for _ in range(5):
            event = asyncio.Event()
            clock.call_later(delay * 0.02, event.set)
            try:
                with clock.deadline(allowed * 0.02 - 0.01):
                    await event.wait()
            except TimeoutError:
                assert delay >= allowed
            await asyncio.sleep(0)
        await clock.sleep(5)

    async def scenario() -> None:
        clock = VirtualClock()
        await asyncio.gather(*(one(clock, delay) for delay in delays))

    run_virtual(scenario)


def test_a_body_that_swallows_the_cancellation_is_not_cancelled_again() -> None:
    async def scenario() -> tuple[bool, int]:
        clock = VirtualClock()
        with clock.deadline(1) as deadline:
            try:
                await clock.sleep(100)
            except asyncio.CancelledError:
                pass
        await clock.sleep(100)
        task = asyncio.current_task()
        assert task is not None
        return deadline.expired, task.cancelling()

    assert run_virtual(scenario) == (True, 0)


def test_another_error_at_expiry_wins_and_the_count_is_taken_back() -> None:
    async def scenario() -> int:
        clock = VirtualClock()
        with pytest.raises(KeyError), clock.deadline(1):
            try:
                await clock.sleep(100)
            finally:
                raise KeyError("body")
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert run_virtual(scenario) == 0


def test_a_deadline_outside_a_task_is_refused() -> None:
    """Without a task nothing could be cancelled: an error now instead of a block that never ends."""

    async def scenario() -> BaseException | None:
        clock = VirtualClock()
        found: list[BaseException] = []

        def callback() -> None:
            try:
                with clock.deadline(1):
                    pass
            except RuntimeError as error:
                found.append(error)

        asyncio.get_running_loop().call_soon(callback)
        await clock.sleep(1)
        return found[0]

    assert "inside an asyncio task" in str(run_virtual(scenario))


def test_a_clock_used_in_a_second_loop_still_fires() -> None:
    """The timer of a loop that is gone must not be waited for."""
    clock = SystemClock()

    async def scenario() -> bool:
        with clock.deadline(600):  # stays in its bucket's timer
            await asyncio.sleep(0)
        try:
            with clock.deadline(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            return True
        return False

    assert asyncio.run(asyncio.wait_for(scenario(), 5))
    assert asyncio.run(asyncio.wait_for(scenario(), 5))
    clock.close()


def test_one_timer_stands_for_any_number_of_deadlines() -> None:
    async def scenario() -> tuple[int, str]:
        clock = VirtualClock()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        async def wait() -> None:
            with clock.deadline(600):
                await clock.sleep(0)

        tasks = [asyncio.create_task(wait()) for _ in range(1000)]
        before = len(loop._scheduled)
        await asyncio.gather(*tasks)
        shown = repr(clock)
        clock.close()
        return len(loop._scheduled) - before, shown

    timers, shown = run_virtual(scenario)
    assert timers <= 2 and "deadlines in 1 buckets" in shown


def test_the_system_clock_is_monotonic_and_runs_timers() -> None:
    async def scenario() -> None:
        clock = SystemClock()
        fired: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        begun = clock.now()
        clock.call_later(0.001, fired.set_result, "yes")
        await clock.sleep(0)
        assert await fired == "yes" and clock.now() > begun
        assert abs(clock.time() - time.time()) < 5
        assert repr(clock) == "<SystemClock <Sweeper 0 deadlines in 0 buckets>>"
        clock.close()

    asyncio.run(scenario())


def test_closing_a_sweeper_leaves_no_timer_and_fires_nothing() -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        with clock.deadline(1):
            clock.close()
            await clock.sleep(10)
        assert isinstance(clock._sweeper, Sweeper)

    run_virtual(scenario)


def test_virtual_sleeps_are_exact_and_instant() -> None:
    async def scenario() -> list[float]:
        clock = VirtualClock(wall=1000.0)
        seen = []
        for step in (0.1, 0.2, 86_400.0 * 30):
            await clock.sleep(step)
            seen.append(clock.now())
        clock.jump(-500)
        return [*seen, clock.time() - clock.now()]

    begun = time.perf_counter()
    assert run_virtual(scenario) == [0.1, 0.1 + 0.2, 0.1 + 0.2 + 86_400.0 * 30, 500.0]
    assert time.perf_counter() - begun < 1


def test_timers_fire_in_order_of_time() -> None:
    async def scenario() -> list[int]:
        clock = VirtualClock()
        fired: list[int] = []
        for delay in (5, 1, 3, 2, 4):
            clock.call_later(delay, fired.append, delay)
        clock.call_later(2.5, fired.append, 0).cancel()
        await clock.sleep(10)
        return fired

    assert run_virtual(scenario) == [1, 2, 3, 4, 5]


def test_a_stuck_program_is_an_error_that_names_the_waiting_tasks() -> None:
    async def stuck() -> None:
        async with asyncio.TaskGroup() as group:
            for i in range(7):
                group.create_task(asyncio.Event().wait(), name=f"waiter-{i}")

    with pytest.raises(DeadlockError, match=r"(?s)nothing is ready.*waiter-\d Event.wait at .*and 3 more"):
        run_virtual(stuck)


def test_threads_are_waited_for_while_virtual_time_stands_still() -> None:
    async def scenario() -> tuple[int, float]:
        async with asyncio.timeout(0.5):
            found = await asyncio.to_thread(sum, range(1000))
        return found, asyncio.get_running_loop().time()

    assert run_virtual(scenario) == (499500, 0.0)


def test_real_sockets_are_refused_with_a_reason() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            await asyncio.get_running_loop().sock_recv(ours, 1)

    with pytest.raises(RuntimeError, match="no real sockets"):
        run_virtual(scenario)


def test_a_virtual_clock_needs_a_virtual_loop() -> None:
    async def scenario() -> None:
        VirtualClock()

    with pytest.raises(RuntimeError, match="run_virtual"):
        asyncio.run(scenario())


def test_results_errors_and_arguments_pass_through_run_virtual() -> None:
    async def scenario(a: int, *, b: int) -> int:
        assert repr(asyncio.get_running_loop()).startswith("<VirtualLoop at 0.0")
        return a // b

    assert run_virtual(scenario, 6, b=2) == 3
    with pytest.raises(ZeroDivisionError):
        run_virtual(scenario, 1, b=0)


def test_twenty_thousand_timers_take_less_than_a_second() -> None:
    """The promise is 200,000 a second; the bound here leaves room for a busy machine."""

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[float] = loop.create_future()

        def step(left: int) -> None:
            if left:
                loop.call_later(1.0, step, left - 1)
            else:
                done.set_result(loop.time())

        step(20_000)
        return await done

    begun = time.perf_counter()
    assert run_virtual(scenario) == 20_000
    assert time.perf_counter() - begun < 1


def test_a_paused_deadline_does_not_count_and_goes_on_with_what_was_left() -> None:
    async def scenario() -> tuple[float, bool]:
        clock = VirtualClock()
        deadline = clock.deadline(5)
        with pytest.raises(TimeoutError), deadline:
            await clock.sleep(2)
            for _ in range(3):
                deadline.pause()
                await clock.sleep(100)
                deadline.resume()
                deadline.resume()
                await clock.sleep(0.5)
            await clock.sleep(100)
        return clock.now(), deadline.expired

    now, expired = run_virtual(scenario)
    assert 305 <= now <= 305.1 and expired


def test_leaving_a_paused_deadline_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        clock = VirtualClock()
        with clock.deadline(5) as deadline:
            deadline.pause()
        deadline.resume()
        with clock.deadline(None) as never:
            never.pause()
            never.resume()
        await clock.sleep(100)
        assert not deadline.expired and not never.expired

    run_virtual(scenario)


def test_buckets_that_are_empty_give_their_room_back() -> None:
    """A busy minute leaves no hundred large sets behind until the deadlines of its requests would have come."""

    async def main() -> int:
        clock = VirtualClock()

        async def request() -> None:
            with clock.deadline(600.0):
                await clock.sleep(0.3)

        for _ in range(200):
            await asyncio.gather(*(request() for _ in range(500)))
        sweeper = clock._sweeper
        return sum(sys.getsizeof(bucket) for bucket in sweeper.buckets.values())

    assert run_virtual(main) < 200_000
