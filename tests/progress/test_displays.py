"""What people see of a run: right numbers, one line that never wraps, and a display that cannot hurt the run."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
import types
from typing import Any

import pytest
from hypothesis import given, strategies as st
from rich.cells import cell_len

from fastllm.engine.holds import Hold, KnownLimit, Room
from fastllm.engine.stats import Snapshot
from fastllm.errors import ConfigError, MissingExtra
from fastllm.progress import make_progress, of_rows, show_summary, summary, watch, with_unseen
from fastllm.progress.base import Meter, Silent, View
from fastllm.progress.line import LineProgress
from fastllm.progress.notebook import NotebookProgress
from fastllm.progress.rich import RichProgress, line
from fastllm.progress.words import count, duration, encodable, fields, latency
from fastllm.testing.clock import run_virtual


class Run:
    """A made-up run: set the counters, read the display."""

    def __init__(self, total: int | None = 100) -> None:
        self.total = total
        self.counts: dict[str, Any] = {}

    def at(self, elapsed: float, **counts: Any) -> None:
        self.counts = {**self.counts, "elapsed": elapsed, **counts}

    def snapshot(self) -> Snapshot:
        return Snapshot(**self.counts)

    def meter(self, already_done: int = 0) -> Meter:
        return Meter(self.snapshot, lambda: self.total, already_done=already_done)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_rates_look_back_over_a_window_and_not_to_the_start() -> None:
    run = Run(total=10_000)
    meter = run.meter()
    for second in range(101):
        run.at(second, done=10 * second if second <= 50 else 500 + 100 * (second - 50))
        view = meter.view()
    assert view.rate == pytest.approx(100) and view.eta == pytest.approx((10_000 - 5_500) / 100)
    assert view.overall_rate == pytest.approx(55)


def test_slow_answers_are_measured_over_a_longer_time() -> None:
    """One answer every 15 s is a rate of 0.067/s, not 0 for ten seconds and 0.1 after."""
    run = Run()
    meter = run.meter()
    for second in range(200):
        run.at(second, done=second // 15)
        view = meter.view()
    assert 0.04 < view.rate < 0.09 and view.eta is not None


def test_resumed_rows_are_done_but_not_in_the_rate() -> None:
    run = Run(total=1000)
    meter = run.meter(already_done=900)
    run.at(0.0)
    assert meter.view().done == 900
    run.at(10.0, done=50)
    view = meter.view()
    assert (view.done, view.rate, view.eta) == (950, 5.0, 10.0)


def test_what_the_engine_did_before_this_run_is_left_out() -> None:
    run = Run(total=10)
    run.at(500.0, done=7, ok=7, failed=3, retries=4, cached=7)
    meter = run.meter()
    meter.view()
    run.at(501.0, done=9, ok=9)
    view = meter.view()
    assert (view.done, view.failed, view.retries, view.elapsed, view.hit_ratio) == (2, 0, 0, 1.0, 0.0)


@pytest.mark.parametrize("total", [None, 0, 5, 10**12])
def test_nothing_divides_by_zero(total: int | None) -> None:
    run = Run(total)
    view = run.meter(already_done=7).view()
    assert view.rate == 0 and view.eta is None and view.hit_ratio is None
    assert line(view, 80).plain and [part.text for part in fields(view)]


numbers = st.integers(0, 10**9)


@given(
    columns=st.integers(10, 200),
    label=st.text(max_size=30).filter(str.isprintable),
    total=st.none() | numbers,
    counts=st.fixed_dictionaries(
        {
            "done": numbers, "in_flight": numbers, "retries": numbers, "rate_limited": numbers, "failed": numbers,
            "cached": numbers, "backing_off": numbers, "rate": st.floats(0, 1e7), "eta": st.none() | st.floats(0, 1e8),
            "prompt_rate": st.floats(0, 1e9), "completion_rate": st.floats(0, 1e9), "hit_ratio": st.floats(0, 1),
        }
    ),
)  # fmt: skip
def test_the_live_line_fits_every_terminal(columns: int, label: str, total: int | None, counts: dict[str, Any]) -> None:
    text = line(View(total=total, **counts), columns, label)
    assert cell_len(text.plain) < columns and "\n" not in text.plain


def test_at_80_columns_the_worthiest_fields_stay() -> None:
    view = View(
        done=12_345, total=50_000, rate=3100, prompt_rate=1.7e6, completion_rate=3e5, in_flight=256, retries=126,
        rate_limited=62, cached=99, hit_ratio=0.3, failed=17, eta=12,
    )  # fmt: skip
    shown = line(view, 80).plain
    assert shown.endswith("12.3k/50.0k · 24% · 3.1k/s · 256 in flight · 17 failed · ETA 12s")
    wide = line(view, 200).plain
    for part in ("12,345/50,000", "1.7M in + 300k out tok/s", "126 retries", "62×429", "30% cached"):
        assert part in wide


def test_plain_lines_come_every_ten_seconds_and_at_the_end() -> None:
    run, out = Run(total=1000), io.StringIO()
    progress = LineProgress(run.meter(), stream=out, label="job")
    for tenth in range(250):
        run.at(tenth / 10, done=tenth, ok=tenth)
        progress.update()
    progress.close()
    progress.close()
    progress.update()
    lines = out.getvalue().splitlines()
    assert [text.split(" · ")[0] for text in lines] == [
        "job [10s] 100/1,000",
        "job [20s] 200/1,000",
        "job [25s] 249/1,000",
    ]
    assert "ETA 1m30s" in lines[0] and "\x1b" not in out.getvalue()


def test_an_ascii_stream_gets_ascii() -> None:
    """A log under LANG=C must not raise UnicodeEncodeError."""
    raw = io.BytesIO()
    run = Run()
    run.at(0.0)
    progress = LineProgress(run.meter(), stream=io.TextIOWrapper(raw, encoding="ascii"))
    progress.update()
    run.at(11.0, done=3, rate_limited=2)
    progress.update()
    assert b"3/100 | 3% | 0.3/s" in raw.getvalue() and b"2x 429" in raw.getvalue()
    assert encodable("a · b", None) == "a · b" and encodable("a · b", "no such encoding") == "a | b"


class Broken(Terminal):
    def write(self, text: str) -> int:
        raise BrokenPipeError("nobody reads")


@pytest.mark.parametrize("kind", ["rich", "plain"])
def test_a_broken_stream_never_stops_the_run(kind: Any) -> None:
    run = Run()
    progress = make_progress(kind, run.snapshot, lambda: 10, stream=Broken())
    for second in (0, 11, 22):
        run.at(second, done=1)
        progress.update()
    progress.close()
    show_summary(summary(run.snapshot()), Broken())


def test_the_rich_display_draws_at_most_ten_times_a_second_and_ends_with_a_newline() -> None:
    run, out = Run(), Terminal()
    progress = RichProgress(run.meter(), stream=out, width=80)
    for hundredth in range(100):
        run.at(hundredth / 100, done=hundredth)
        progress.update()
    drawn = out.getvalue().count("/100")
    progress.close()
    assert 9 <= drawn <= 11 and "99/100" in out.getvalue() and "\n" in out.getvalue()[-20:]


def test_start_draws_from_a_thread_of_its_own_and_close_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run, out, drawn = Run(), io.StringIO(), threading.Event()
    progress = LineProgress(run.meter(), stream=out)
    monkeypatch.setattr(progress, "interval", 0.001)
    monkeypatch.setattr(progress, "_draw", lambda view: drawn.set() if view.done else None)
    progress.start()
    progress.start()
    run.at(5.0, done=5)
    assert drawn.wait(5) and sum(t.name == "fastllm-progress" for t in threading.enumerate()) == 1
    progress.close()
    assert not any(t.name == "fastllm-progress" for t in threading.enumerate())
    assert "5/100" in out.getvalue()


def test_watch_drives_a_display_from_the_callers_loop() -> None:
    import asyncio

    run, out = Run(), io.StringIO()

    async def scenario() -> None:
        progress = LineProgress(
            Meter(lambda: Snapshot(elapsed=asyncio.get_running_loop().time()), lambda: 1), stream=out
        )
        watcher = asyncio.create_task(watch(progress, 0.1))
        await asyncio.sleep(35)
        watcher.cancel()
        await asyncio.wait([watcher])

    run_virtual(scenario)
    assert len(out.getvalue().splitlines()) == 4 and run.total


def test_auto_is_the_live_line_only_on_a_capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_progress("auto", run.snapshot, lambda: 1, stream=Terminal()), RichProgress)
    assert isinstance(make_progress("auto", run.snapshot, lambda: 1, stream=io.StringIO()), LineProgress)
    assert isinstance(make_progress("none", run.snapshot, lambda: 1), Silent)
    closed = io.StringIO()
    closed.close()
    assert isinstance(make_progress("auto", run.snapshot, lambda: 1, stream=closed), LineProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress("auto", run.snapshot, lambda: 1, stream=Terminal()), LineProgress)
    with pytest.raises(ConfigError, match="one of auto, rich, plain, none; not 'fancy'"):
        make_progress("fancy", run.snapshot, lambda: 1)  # type: ignore[arg-type]


def test_no_display_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    progress = make_progress("rich", Run().snapshot, lambda: 1)
    progress.start()
    progress.update()
    progress.close()
    show_summary(summary(Snapshot()))


def test_a_notebook_gets_tqdm_and_without_it_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    python = types.ModuleType("IPython")
    python.get_ipython = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", python)
    run = Run()
    assert isinstance(make_progress("auto", run.snapshot, lambda: 1), NotebookProgress)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert isinstance(make_progress("auto", run.snapshot, lambda: 1), LineProgress)
    with pytest.raises(MissingExtra, match=r"pip install 'fastllm\[notebook\]'"):
        NotebookProgress(run.meter())


def test_the_notebook_bar_shows_the_same_numbers() -> None:
    run, out = Run(), io.StringIO()
    progress = NotebookProgress(run.meter(already_done=5), file=out, ncols=100)
    progress.update()
    run.at(10.0, done=50, ok=48, failed=2)
    progress.update()
    progress.close()
    assert "55/100" in out.getvalue() and "2 failed" in out.getvalue()


FULL = Snapshot(
    elapsed=100.0, done=900, ok=890, failed=10, cached=89, joined=1, attempts=850, retries=50, rate_limited=20,
    hedges=3, most_in_flight=64, prompt_tokens=120_000, completion_tokens=30_000, p50=0.81, p95=2.345, p99=14.0,
    errors={"BadRequestError": 3, "RateLimitError": 7},
)  # fmt: skip


def test_the_summary_is_data_for_programs() -> None:
    found = summary(FULL, total=1100, already_done=100, elapsed=90.0, output="out.jsonl", failures=None)
    data = json.loads(found.to_json())
    assert data["rows"] == data["ok"] + data["failed"] + data["resumed"] + data["left"] == 1100
    assert (data["requests_per_second"], data["left"], data["cache_hit_ratio"]) == (10.0, 100, 0.1)
    assert (data["latency_p50"], data["latency_p95"], data["latency_p99"]) == (0.81, 2.345, 14.0)
    assert list(data["errors"].items()) == [("RateLimitError", 7), ("BadRequestError", 3)]
    assert data["output"] == "out.jsonl" and data["failures"] is None and found.to_json().endswith(b"}\n")


def test_the_summary_is_a_few_lines_for_people() -> None:
    text = summary(FULL, total=1100, already_done=100, output="out.jsonl", failures="bad\nname").text()
    assert text == (
        "900 rows in 1m40s · 9/s · 1,000 of 1,100 done\n"
        "  ok         890 (89 cached, 1 joined)\n"
        "  failed     10 (7 RateLimitError, 3 BadRequestError)\n"
        "  resumed    100 from an earlier run\n"
        "  left       100 not done; run again to go on\n"
        "  sent       850 (50 retries, 3 hedges, 20 rate-limited), at most 64 at once\n"
        "  tokens     120k in (1.2k/s), 30.0k out (300/s)\n"
        "  latency    p50 810ms, p95 2.35s, p99 14s\n"
        "  output     out.jsonl\n"
        "  failures   bad?name\n"
    )


def test_an_empty_run_has_a_summary_too() -> None:
    """Nothing done, no time passed, a file name that is no UTF-8: numbers, no error."""
    found = summary(Snapshot(), output="\udcff.jsonl")
    assert found.text().startswith("0 rows in 0s · 0/s\n  ok         0\n")
    assert json.loads(found.to_json())["requests_per_second"] == 0


def test_the_summary_goes_to_the_stream_in_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain, terminal = io.StringIO(), Terminal()
    show_summary(summary(FULL), plain)
    show_summary(summary(FULL), terminal)
    assert plain.getvalue() == summary(FULL).text() and "\x1b[" in terminal.getvalue()
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert stripped == plain.getvalue()


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"), (7, "7"), (0.25, "0.2"), (9.96, "10.0"), (812.4, "812"), (999.6, "1.0k"), (12_345, "12.3k"),
        (99_960, "100k"), (999_600, "1.0M"), (1_234_567, "1.2M"), (3e15, "3.0P"), (2e18, "2000P"),
    ],
)  # fmt: skip
def test_counts_are_short(number: float, shown: str) -> None:
    assert count(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.6, "1m00s"), (394, "6m34s"), (7500, "2h05m"), (273_600, "3d04h")],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_latencies_are_short() -> None:
    assert [latency(s) for s in (0.0042, 0.81, 2.345, 75)] == ["4.2ms", "810ms", "2.35s", "1m15s"]


def test_rows_that_never_reached_the_engine_are_done_and_failed() -> None:
    seen = Snapshot(done=5, ok=4, failed=1, errors={"a": 1})
    both = with_unseen(seen, {"a": 2, "b": 1})
    assert (both.done, both.ok, both.failed, both.errors) == (8, 4, 4, {"a": 3, "b": 1})


def test_a_job_knows_its_rows_better_than_the_engine() -> None:
    """A process that was killed never told of the last rows that it answered; what the others tell stays."""
    seen = Snapshot(done=93, ok=93, attempts=95, cached=2)
    found = of_rows(seen, 100, {"BadRequestError": 3})
    assert (found.done, found.ok, found.failed, found.errors) == (100, 97, 3, {"BadRequestError": 3})
    assert (found.attempts, found.cached) == (95, 2)


def test_the_figures_of_a_resumed_run_agree() -> None:
    """4,994 of 5,000 are not "5.0k of 5.0k", and a rate belongs to the rows that it stands beside."""
    found = summary(Snapshot(done=994, ok=994), total=5000, already_done=4000, elapsed=10.0)
    text = found.text()
    assert text.startswith("994 rows in 10s · 99/s · 4,994 of 5,000 done\n")
    assert "6 not done" in text and found.requests_per_second == 99.4
    whole = summary(Snapshot(done=1000, ok=1000), total=5000, already_done=4000, elapsed=10.0).text()
    assert whole.startswith("1,000 rows in 10s · 100/s · 5,000 of 5,000 done\n")
    assert (
        summary(Snapshot(done=5000, ok=5000), total=5000, elapsed=10.0).text().startswith("5,000 rows in 10s · 500/s\n")
    )


def test_waiting_for_a_limit_is_told_and_does_not_deceive_the_eta() -> None:
    """200 of 500 rows at once and then none for a minute are 200 a minute, and no burst lasts."""
    run = Run(total=500)
    meter = run.meter()
    run.at(0.0)
    meter.view()
    for tenth in range(1, 600):
        run.at(tenth / 10, done=min(200, 8 * tenth), in_flight=8 if tenth < 25 else 0, waiting=300)
        view = meter.view()
        if tenth > 31:  # thought over when it stood, and counted down since
            assert view.eta == pytest.approx(90 - (tenth - 25) / 10, abs=5)
    assert "300 waiting for limits" in [part.text for part in fields(view)]
    assert not [part for part in fields(View()) if part.name == "waiting"]


PARKED = Hold(endpoint="m", why="parked until 14:05:00 (429)", short="parked until 14:05")


def test_while_an_endpoint_stands_still_it_says_so_and_gives_no_eta() -> None:
    run = Run(total=1000)
    meter = run.meter()
    for second in range(20):
        run.at(second, done=10 * second, in_flight=9)
        assert (meter.view().eta is None) == (second < 2), "what the first second shows is no rate"
    run.at(21, in_flight=0, waiting=700, holds=(PARKED,), limits={"m": ""})
    view = meter.view()
    assert view.eta is None
    texts = [part.text for part in fields(view)]
    assert "parked until 14:05:00 (429)" in texts and "700 waiting" in texts and "ETA" not in " ".join(texts)
    narrow = line(view, 60).plain
    assert (
        "parked until 14:05" in narrow
        and "190/1.0k" in narrow
        and "700 waiting" in narrow
        and "waiting for limits" not in narrow
    )
    run.at(3600, holds=())
    assert meter.view().eta is None
    for second in range(1, 12):
        run.at(3600 + second, done=190 + 10 * second, waiting=0, in_flight=9)
        view = meter.view()
    assert view.eta == pytest.approx(70, rel=0.1) and view.rate == pytest.approx(10, rel=0.1)


def test_an_eta_is_counted_down_and_taken_back_when_its_time_came_without_a_row() -> None:
    run = Run(total=200)
    meter = run.meter()
    for second in range(11):
        run.at(second, done=10 * second, in_flight=1)
        view = meter.view()
    assert view.eta == 10
    run.at(15)
    assert meter.view().eta == 5
    run.at(21)
    assert meter.view().eta is None


def test_the_eta_under_a_limit_a_minute_comes_from_its_ledger() -> None:
    """600 a minute, sent in the first 10 s of each: the last of 3,000 rows goes out at 4 minutes and 10 seconds."""
    run = Run(total=3000)
    meter = run.meter()
    for second in range(240):
        minute, within = divmod(second, 60)
        sent = min(600, 60 * within)

        def used(ahead: int, within: int = within, sent: int = sent, minute: int = minute) -> int:
            """What this minute has sent leaves after 60 s, what the last one sent in its first 10 s."""
            earlier = 600 - 60 * min(10, within + ahead) if minute else 0
            return earlier + sent - 60 * min(10, max(0, ahead + within - 60))

        run.at(
            second, done=600 * minute + sent, ok=600 * minute + sent, waiting=2400, in_flight=0 if within > 10 else 9,
            rooms={"requests": Room(limit=600.0, used=tuple(used(ahead) for ahead in range(0, 70, 5)))},
        )  # fmt: skip
        view = meter.view()
        if second > 11 and within > 10:
            assert view.eta == pytest.approx(250 - second, abs=6)


def test_where_a_limit_holds_that_is_no_limit_a_minute_the_eta_comes_from_the_rate() -> None:
    """6,000 a minute were set, and one a second is what was found to get through: the set limit says nothing."""
    run = Run(total=1000)
    meter = run.meter()
    rooms = {"requests": Room(limit=6000.0, used=(50.0,) * 14)}
    for tenth in range(600):
        run.at(tenth / 10, done=tenth // 10, ok=tenth // 10, attempts=1, waiting=500, in_flight=0, rooms=rooms)
        view = meter.view()
        if tenth > 150:
            assert view.eta == pytest.approx(1000 - tenth / 10, rel=0.1)


def test_from_the_beginning_the_eta_is_no_sooner_than_the_limits_of_a_minute_allow() -> None:
    """A burst of 60 a second of 3,000 rows, where 600 a minute may go out."""
    run = Run(total=3000)
    meter = run.meter()
    for second in range(5):
        used = 60.0 * second
        run.at(
            second, done=60 * second, ok=60 * second, attempts=60 * second, in_flight=9,
            rooms={"requests": Room(limit=600.0, used=(used,) * 12 + (0.0, 0.0))},
        )  # fmt: skip
        view = meter.view()
    assert view.eta is not None and 235 < view.eta < 305


def test_tokens_of_earlier_runs_do_not_count_in_the_eta() -> None:
    run = Run(total=200)
    run.at(500.0, attempts=10**6, prompt_tokens=10**9)
    meter = run.meter()
    meter.view()
    for second in range(1, 11):
        room = Room(limit=1000.0, used=(100.0 * second,) * 12 + (0.0, 0.0))
        run.at(
            500.0 + second, done=10 * second, ok=10 * second, attempts=10**6 + 10 * second,
            prompt_tokens=10**9 + 100 * second, rooms={"tokens": room},
        )  # fmt: skip
        view = meter.view()
    assert view.eta is not None and 50 < view.eta < 65, "100 rows of 10 tokens: the next minute's"


def test_waiting_for_the_first_answer_is_no_limit() -> None:
    """Rows stand behind the first one, which shows whether the key is good; a burst it is not that follows."""
    run = Run(total=5000)
    meter = run.meter()
    for tenth in range(50):
        done = max(0, 40 * (tenth - 15))
        run.at(tenth / 10, done=done, ok=done, attempts=done + 1, waiting=100, in_flight=40 if done else 0)
        view = meter.view()
    assert view.eta == pytest.approx((5000 - done) / 400, rel=0.1)


@pytest.mark.parametrize("p50", [None, 0.2])
def test_the_eta_is_of_what_goes_on_now(p50: float | None) -> None:
    """Not of the time before the first request, in which processes start and a resumed run passes over its rows, nor of
    the ramp-up."""
    run = Run(total=10_000)
    meter = run.meter(already_done=5000)
    done = 0
    for tenth in range(120):
        second = tenth / 10
        if second > 5:
            done += 10 if second < 6 else 40
        run.at(second, done=done, ok=done, attempts=done + 100 if second > 5 else 0, in_flight=100, p50=p50)
        view = meter.view()
        if second < 7:
            assert view.eta is None
        elif second > 8:
            assert view.eta == pytest.approx((5000 - done) / 400, rel=0.15)
            assert view.rate == pytest.approx(400, rel=0.15)
    for tenth in range(30):
        done += 4
        run.at(12 + tenth / 10, done=done, ok=done)
        view = meter.view()
    assert view.eta == pytest.approx((5000 - done) / 40, rel=0.3), "it slows down as fast"


def test_rows_that_come_back_together_are_no_rate() -> None:
    """A hundred in flight, fifteen seconds each, all at once."""
    run = Run(total=1000)
    meter = run.meter()
    run.at(0.0)
    meter.view()
    for second in range(140):
        done = 100 * (second // 15)
        run.at(second, done=done, ok=done, attempts=done + 100, in_flight=100, p50=15.0 if done else None)
        view = meter.view()
        if second > 31 and view.eta is not None:
            assert view.eta == pytest.approx(150 - second, rel=0.4, abs=20)


def test_what_was_never_sent_is_left_and_neither_done_nor_failed() -> None:
    run = Run(total=300)
    meter = run.meter()
    run.at(0.0)
    meter.view()
    run.at(5.0, done=1, failed=1, unsent=299)
    view = meter.view()
    assert (view.done, view.failed, view.unsent, view.percent) == (1, 1, 299, 0)
    assert "299 not sent" in [part.text for part in fields(view)]
    found = summary(run.snapshot(), total=300)
    assert (found.failed, found.left) == (1, 299)
    assert found.text().startswith("1 row in 5s · 0.2/s · 1 of 300 done\n")


@pytest.mark.parametrize(("done", "shown"), [(0, 0), (1, 0), (999_999, 99), (1_000_000, 100)])
def test_a_hundred_percent_is_all(done: int, shown: int) -> None:
    assert View(done=done, total=1_000_000).percent == shown


def test_the_cost_is_shown_where_it_is_known_and_more_than_nothing() -> None:
    assert ("cost", "$1.23") in summary(Snapshot(ok=1, done=1, cost_usd=1.234)).lines()
    for unknown in (None, 0.0):
        found = summary(Snapshot(ok=1, done=1, cost_usd=unknown))
        assert "cost" not in dict(found.lines())
        assert (b'"cost_usd": null' in found.to_json()) == (unknown is None)


def test_the_limits_that_a_run_came_to_know_are_told_at_its_end() -> None:
    told, pace = KnownLimit(limit=600.0, source="told"), KnownLimit(limit=9.5, source="found")
    one = {"m": {"requests_per_minute": told, "requests_per_second": pace}}
    found = summary(Snapshot(learnt=one))
    assert ("limits", "600 requests a minute (told), 9.5 requests a second (found)") in found.lines()
    assert json.loads(found.to_json())["limits"]["m"]["requests_per_minute"] == {"limit": 600.0, "source": "told"}
    two = summary(Snapshot(learnt={**one, "n": {"tokens_per_minute": told}}))
    assert ("limits", "n: 600 tokens a minute (told)") in two.lines()
    assert not [name for name, _ in summary(Snapshot()).lines() if name == "limits"]


def test_answers_that_did_not_fit_are_told_beside_the_rows() -> None:
    """They are neither done nor failed, but an answer from the cache may be one of them."""
    snapshot = Snapshot(done=3, ok=2, failed=1, misfits=4, cached=3, errors={"InvalidAnswerError": 1})
    found = summary(snapshot)
    assert (found.rows, found.misfits, found.cache_hit_ratio) == (3, 4, 0.5)
    assert ("misfits", "4 answers did not fit the schema") in found.lines()
    assert ("misfits", "1 answer did not fit the schema") in summary(Snapshot(misfits=1)).lines()
    assert not [name for name, _ in summary(Snapshot()).lines() if name == "misfits"]
