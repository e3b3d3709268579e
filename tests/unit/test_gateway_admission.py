"""Who goes first, who waits, and who is sent away."""

import asyncio
import time

import pytest

from services.gateway.admission import Admission
from services.gateway.errors import Refusal
from services.gateway.pace import Pace


class Crowd:
    """Requests that stay inside until they are let go."""

    def __init__(self, door: Admission) -> None:
        self.door = door
        self.inside: list[str] = []
        self._go: dict[str, asyncio.Event] = {}

    def send(self, name: str) -> "asyncio.Task[None]":
        return asyncio.create_task(self._visit(name))

    async def _visit(self, name: str) -> None:
        async with self.door.enter(name[0]):
            self.inside.append(name)
            self._go[name] = asyncio.Event()
            await self._go[name].wait()

    async def leave(self, name: str) -> None:
        self._go[name].set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def a_door(**options: float) -> Admission:
    chosen = {"max_running": 2, "max_waiting": 10, "max_wait_s": 60, **options}
    return Admission(
        max_running=int(chosen["max_running"]),
        max_waiting=int(chosen["max_waiting"]),
        max_wait_s=chosen["max_wait_s"],
        clock=lambda: 0.0,  # so none has taken any time
    )


async def test_the_key_with_fewest_running_goes_first() -> None:
    crowd = Crowd(a_door())
    tasks = [crowd.send(name) for name in ("a1", "a2", "a3", "a4", "b1")]
    await settle()
    assert crowd.inside == ["a1", "a2"]
    await crowd.leave("a1")
    assert crowd.inside == ["a1", "a2", "b1"], "b came last, but has nothing running"
    await crowd.leave("b1")
    assert crowd.inside[-1] == "a3"
    for name in ("a2", "a3", "a4"):
        await crowd.leave(name)
    await asyncio.gather(*tasks)
    assert (crowd.door.running, crowd.door.waiting) == (0, 0)


async def test_a_full_queue_refuses_at_once() -> None:
    crowd = Crowd(a_door(max_waiting=1))
    tasks = [crowd.send(name) for name in ("a1", "a2", "a3")]
    await settle()
    with pytest.raises(Refusal) as refusal:
        await crowd.send("a4")
    assert refusal.value.status == 503
    assert "limits.max_queued_requests" in refusal.value.message
    assert refusal.value.headers["retry-after"] == "1"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (crowd.door.running, crowd.door.waiting) == (0, 0)


async def test_who_waits_too_long_is_told_so() -> None:
    crowd = Crowd(a_door(max_running=1, max_wait_s=0.01))
    first = crowd.send("a1")
    await settle()
    with pytest.raises(Refusal, match=r"no engine was free for 0\.01 s"):
        await crowd.send("b1")
    await crowd.leave("a1")
    await first
    assert (crowd.door.running, crowd.door.waiting) == (0, 0)


async def test_who_is_let_in_at_the_last_moment_stays_and_leaves_no_trace() -> None:
    crowd = Crowd(a_door(max_running=1, max_wait_s=0.01))
    first, second = crowd.send("a1"), crowd.send("b1")
    await settle()
    time.sleep(0.02)  # the loop sees the time-out and the free place in one round
    crowd._go["a1"].set()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert (crowd.door.running, crowd.door.waiting) == (0, 0)


async def test_a_turn_and_the_time_out_at_once_count_as_a_turn() -> None:
    door = a_door(max_running=0, max_wait_s=60)
    inside = []

    async def visit() -> None:
        async with door.enter("a"):
            inside.append("a")

    task = asyncio.create_task(visit())
    await settle()
    [[turn]] = door._waiting.values()
    door.max_running = 1
    door.let_in()
    assert turn.done()
    task.cancel()  # as the time-out does, before the task has seen its turn
    await asyncio.gather(task, return_exceptions=True)
    assert (door.running, door.waiting, inside) == (0, 0, [])


async def test_more_room_lets_those_who_wait_in() -> None:
    crowd = Crowd(a_door(max_running=1))
    tasks = [crowd.send(name) for name in ("a1", "b1", "c1")]
    await settle()
    crowd.door.max_running = 3
    crowd.door.let_in()
    await settle()
    assert crowd.inside == ["a1", "b1", "c1"]
    for name in crowd.inside.copy():
        await crowd.leave(name)
    await asyncio.gather(*tasks)


async def test_who_is_let_in_and_leaves_in_the_same_moment_takes_no_room() -> None:
    crowd = Crowd(a_door(max_running=1))
    first, second, third = (crowd.send(name) for name in ("a1", "b1", "c1"))
    await settle()
    crowd._go["a1"].set()
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    await settle()
    assert crowd.door.running == 1
    assert crowd.inside[-1] in ("b1", "c1")
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
    assert (crowd.door.running, crowd.door.waiting) == (0, 0)


async def test_a_closing_gateway_takes_nothing_new() -> None:
    door = a_door()
    door.is_closing = True
    with pytest.raises(Refusal, match="stopping"):
        async with door.enter("a"):
            pass


async def test_nobody_waits_for_a_turn_that_would_come_too_late() -> None:
    now_s = [0.0]
    door = Admission(max_running=2, max_waiting=10, max_wait_s=3.0, clock=lambda: now_s[0])
    crowd = Crowd(door)
    for name in ("a1", "a2"):  # each stays for four seconds: with two places, one leaves every two
        crowd.send(name)
        await settle()
        now_s[0] += 4.0
        await crowd.leave(name)
    tasks = [crowd.send(name) for name in ("a3", "a4", "a5")]
    await settle()
    assert (door.running, door.waiting) == (2, 1), "a5 waits for two seconds"
    with pytest.raises(Refusal) as refusal:
        await crowd.send("a6")
    assert refusal.value.status == 503
    assert "the next one would for 4.0 s, and the limit is 3" in refusal.value.message
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (door.running, door.waiting) == (0, 0)


async def test_under_overload_those_who_leave_together_do_not_let_as_many_in_together() -> None:
    now_s = [0.0]
    door = Admission(max_running=8, max_waiting=8, max_wait_s=0.5, clock=lambda: now_s[0])
    door._pace.took(0.8)  # with eight places one leaves every 0.1 s
    crowd = Crowd(door)
    tasks = [crowd.send(f"a{n}") for n in range(8)]
    await settle()
    assert len(crowd.inside) == 8, "nobody was sent away yet, so all may come at once"
    now_s[0] = 0.8
    tasks += [crowd.send(f"b{n}") for n in range(8)]
    await settle()
    assert (door.running, door.waiting) == (8, 5), "three would have waited for 0.6 s"
    for n in range(8):
        await crowd.leave(f"a{n}")
    assert crowd.inside[8:] == ["b0"], "there is room for all five"
    for n in range(1, 5):
        now_s[0] += 0.075
        door.let_in()
        await settle()
        assert len(crowd.inside) == 8 + n
        now_s[0] += 0.01
        door.let_in()
        await settle()
        assert crowd.inside[-1] == f"b{n}", "one enters every 0.08 s"
    for name in crowd.inside[8:]:
        await crowd.leave(name)
    refused = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(one, Refusal) for one in refused) == 3
    assert (door.running, door.waiting) == (0, 0)


async def test_who_waits_for_his_turn_to_enter_is_let_in_by_time_alone() -> None:
    door = Admission(max_running=4, max_waiting=8, max_wait_s=0.5)
    door._pace.took(0.2)
    door._refused_s = time.monotonic()
    crowd = Crowd(door)
    tasks = [crowd.send(name) for name in ("a1", "a2", "a3")]
    async with asyncio.timeout(5):
        while len(crowd.inside) < 3:
            await asyncio.sleep(0.01)
    for name in crowd.inside:
        await crowd.leave(name)
    await asyncio.gather(*tasks)


async def test_a_full_queue_makes_room_for_a_key_that_has_less() -> None:
    crowd = Crowd(a_door(max_waiting=2))
    tasks = {name: crowd.send(name) for name in ("a1", "a2", "a3", "a4")}
    await settle()
    tasks["b1"] = crowd.send("b1")
    await settle()
    with pytest.raises(Refusal, match=r"limits\.max_queued_requests"):
        await tasks.pop("a4")
    with pytest.raises(Refusal):
        await crowd.send("a5")
    await crowd.leave("a1")
    assert crowd.inside == ["a1", "a2", "b1"]
    await crowd.leave("a2")
    for name in ("b1", "a3"):
        await crowd.leave(name)
    await asyncio.gather(*tasks.values())
    assert (crowd.door.running, crowd.door.waiting) == (0, 0)


async def test_who_is_sent_away_while_his_time_runs_out_is_not_let_in() -> None:
    crowd = Crowd(a_door(max_running=1, max_waiting=1, max_wait_s=0.01))
    first, second = crowd.send("a1"), crowd.send("a2")
    await settle()
    third = crowd.send("b1")
    time.sleep(0.02)  # the loop sees the time-out of a2 and that it is sent away in one round
    with pytest.raises(Refusal):
        await second
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
    assert (crowd.inside, crowd.door.running) == (["a1"], 1)
    await crowd.leave("a1")
    await first


def test_the_pace_follows_what_ended_last() -> None:
    pace = Pace()
    assert pace.wait_s(10, 2) == 0.0, "nobody has left yet"
    for _ in range(100):
        pace.took(1.0)
    assert pace.wait_s(0, 4) == pytest.approx(0.25)
    assert pace.wait_s(7, 4) == pytest.approx(2.0)
    for _ in range(100):
        pace.took(3.0)
    assert pace.wait_s(0, 4) == pytest.approx(0.75, rel=0.05)
