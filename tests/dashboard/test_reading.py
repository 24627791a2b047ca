"""Readings: adding up processes loses nothing and depends on no order, whatever they counted."""

from __future__ import annotations

import msgspec
from hypothesis import given, strategies as st

from fastllm.dashboard.reading import EndpointState, Group, JobState, Limit, Reading, added, reading_of
from fastllm.testing.clock import run_virtual
from kits.engine import answer, batch, make_engine

names = st.sampled_from(["a", "b", "c"])
numbers = st.integers(0, 1000)
counts = st.dictionaries(names, numbers)
groups = st.dictionaries(
    names, st.builds(Group, requests=numbers, failed=numbers, latency=st.dictionaries(st.integers(0, 900), numbers))
)
limits = st.none() | st.builds(
    Limit, used=numbers.map(float), limit=numbers.map(float), source=st.sampled_from(["set", "told"])
)
endpoints = st.lists(
    st.builds(EndpointState, name=names, in_flight=numbers, slots=numbers, waiting=numbers, requests=limits),
    unique_by=lambda state: state.name,
)
readings = st.builds(
    Reading,
    counts=counts,
    cost=st.none() | numbers.map(float),
    latency=st.dictionaries(st.integers(0, 900), numbers),
    errors=counts,
    models=groups,
    keys=groups,
    endpoints=endpoints,
)


def plain(reading: Reading) -> object:
    found = msgspec.to_builtins(reading)
    found["endpoints"] = sorted(found["endpoints"], key=lambda state: state["name"])
    return found


@given(st.lists(readings, max_size=4), st.randoms())
def test_the_sum_is_the_same_in_any_order_and_changes_no_part(parts: list[Reading], chance: object) -> None:
    before = msgspec.json.encode(parts)
    total = added(parts)
    assert plain(added(list(reversed(parts)))) == plain(total)
    assert msgspec.json.encode(parts) == before
    for name in total.counts:
        assert total.counts[name] == sum(part.counts.get(name, 0) for part in parts)
    for name, group in total.models.items():
        assert group.requests == sum(part.models[name].requests for part in parts if name in part.models)
    assert (total.cost is None) == any(part.cost is None for part in parts)
    for state in total.endpoints:
        same = [one for part in parts for one in part.endpoints if one.name == state.name]
        assert state.slots == sum(one.slots for one in same)
        known = [one.requests for one in same if one.requests is not None]
        assert (state.requests is None) == (not known)
        if state.requests is not None:
            assert state.requests.used == sum(one.used for one in known)
            if {one.source for one in known} == {"set"}:
                assert state.requests.limit == sum(one.limit for one in known)
            elif {one.source for one in known} == {"told"}:
                assert state.requests.limit == max(one.limit for one in known)


def test_of_a_job_that_two_know_the_first_ones_word_holds() -> None:
    one, other = (Reading(jobs=[JobState(id="j", name="n", status="running", done=done)]) for done in (3, 2))
    assert [job.done for job in added([one, other]).jobs] == [3]


def test_an_engine_is_read_with_its_limits() -> None:
    async def scenario() -> None:
        engine = make_engine(lambda http: answer())
        await batch(engine, 7)
        found = reading_of(engine.snapshot(), engine.router.endpoints, engine.clock.now(), engine.clock.time())
        assert found.counts["ok"] == 7
        (state,) = found.endpoints
        assert (state.in_flight, state.waiting, state.state) == (0, 0, "")
        assert state.slots > 0
        words = reading_of(engine.snapshot(), (), 0.0, 0.0)
        assert "slots" in words.endpoints[0].words
        await engine.aclose()

    run_virtual(scenario)
