"""The benchmark's results as a Markdown table and as a plain SVG that reads on light and dark pages alike."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

from contenders import LIMIT, MOST_CPU, MOST_CPU_TLS, MOST_OF_LIMIT, OURS, STREAMED_GOAL
from rounds import Standing

WIDTH, LEFT, RIGHT, ROW, TOP = 860, 210, 150, 26, 62
STYLE = """
  text { font-family: system-ui, "Segoe UI", sans-serif; font-size: 12px; fill: #24292f }
  .title { font-weight: 600; font-size: 14px }
  .grid { stroke: #8c959f; stroke-opacity: .35 }
  .ours { fill: #0969da } .other { fill: #8c959f } .limit { fill: #1a7f37 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .ours { fill: #58a6ff } .other { fill: #6e7681 } .limit { fill: #56d364 }
  }
"""


@dataclass(frozen=True)
class Setting:
    """What was asked of everybody."""

    requests: int
    in_flight: int
    latency: float  # the mean, in seconds
    sigma: float
    tls: bool
    chunks: int  # 0: no streaming
    rounds: int
    machine: str

    @property
    def title(self) -> str:
        kind = (
            f"{self.requests:,} streamed answers of {self.chunks} chunks"
            if self.chunks
            else f"{self.requests:,} chat requests"
        )
        late = (
            "" if self.chunks else f", answers after {1000 * self.latency:g} ms" + (" on average" if self.sigma else "")
        )
        return f"{kind}, {self.in_flight} in flight{late}, {'TLS' if self.tls else 'plain HTTP'}"


def named(standings: list[Standing], name: str) -> Standing | None:
    return next((s for s in standings if s.contender.name == name and s.rounds), None)


def table(standings: list[Standing], setting: Setting) -> str:
    """Give the page: the table, then the goals that are no row of it."""
    ours = named(standings, OURS)
    rows = [_row(standing, ours, setting) for standing in standings]
    heads = _heads(setting)
    lines = [
        f"# {setting.title}",
        "",
        f"{setting.machine}. Medians of {setting.rounds} rounds, taken in turn.",
        "",
        "| " + " | ".join(heads) + " |",
        "|---|" + "---:|" * (len(heads) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *_goals(standings, ours, setting),
        "",
        *_notes(standings, setting),
    ]
    return "\n".join(lines) + "\n"


def _heads(setting: Setting) -> list[str]:
    if setting.chunks:
        return ["contender", "answers a round", "CPU µs a chunk", "chunks a CPU second", "×", "peak RSS, MB", "lost"]
    most = [
        "contender",
        "requests a round",
        "CPU µs a request",
        "×",
        "goal",
        "requests/s",
        "efficiency",
        "peak RSS, MB",
    ]
    return [*most, "lost", "beyond, by the server's count", "server busy"]


def _row(standing: Standing, ours: Standing | None, setting: Setting) -> list[str]:
    name = f"{standing.contender.name} {standing.version}".strip()
    blank = len(_heads(setting)) - 2
    if not standing.rounds:
        return [name, "failed: " + standing.error.replace("|", "\\|"), *[""] * blank]
    times = f"{standing.cpu / ours.cpu:.1f}" if ours else ""
    if setting.chunks:
        chunk = standing.cpu / setting.chunks
        figures = [f"{standing.requests:,}", f"{chunk:.1f}", f"{1e6 / chunk:,.0f}", times]
        return [name, *figures, f"{standing.rss:.0f}", str(standing.lost)]
    goal = None if setting.tls else standing.contender.goal
    met = "" if goal is None or ours is None else " ✓" if standing.cpu >= goal * ours.cpu else " ✗"
    ideal = f"{100 * standing.efficiency(setting.in_flight, setting.latency):.0f} %" if setting.latency else ""
    return [
        name,
        f"{standing.requests:,}",
        f"{standing.cpu:.1f}",
        times,
        "" if goal is None else f"≥ {goal:g}{met}",
        f"{standing.rate:,.0f}",
        ideal,
        f"{standing.rss:.0f}",
        str(standing.lost),
        f"{standing.extra:+}" if standing.extra else "0",
        f"{100 * standing.server:.0f} %",
    ]


def _goals(standings: list[Standing], ours: Standing | None, setting: Setting) -> list[str]:
    if ours is None:
        return []
    if setting.chunks:
        sdk = named(standings, "OpenAI SDK")
        return [_goal("chunks a CPU second, times the OpenAI SDK's", sdk.cpu / ours.cpu, STREAMED_GOAL)] if sdk else []
    if setting.tls:
        return [_goal("CPU µs a request", ours.cpu, MOST_CPU_TLS, most=True)]
    lines = [_goal("CPU µs a request", ours.cpu, MOST_CPU, most=True)]
    limit = named(standings, LIMIT)
    if limit is not None:
        lines.append(_goal("times what wrk takes", ours.cpu / limit.cpu, MOST_OF_LIMIT, most=True))
    return lines


def _goal(what: str, value: float, bound: float, *, most: bool = False) -> str:
    met = value <= bound if most else value >= bound
    return f"- {OURS}: {value:.1f} {what}; goal {'≤' if most else '≥'} {bound:g}: {'met' if met else 'missed'}"


def _notes(standings: list[Standing], setting: Setting) -> list[str]:
    notes = [
        "- CPU is user and system time of the contender's process, threads and children while it sends, without "
        "imports and the warm-up, in which the connections are made; × is CPU relative to `fastllm stream`."
    ]
    fewer = [s.contender.name for s in standings if s.rounds and _given_fewer(s, setting)]
    if fewer:
        notes.append(f"- At the same concurrency, but fewer requests, so that a round ends: {'; '.join(fewer)}.")
    if not setting.chunks:
        notes += [
            "- `fastllm run` is the command line with journal, limits, statistics and output file; a run of one row is "
            "subtracted, but its connections are made while it is measured.",
            "- wrk runs for a time, reads no answer, and cuts off what is in flight at the end, which only the server "
            "counts. curator sends a request of its own to learn limits. The cookbook's loop starts a request a "
            "millisecond at most, and so is never as many in flight.",
            "- Efficiency is the share of the ideal rate, requests in flight / latency; “server busy” the share of its "
            "core that nginx used. Wall-clock figures suffer where the cores are shared with other work.",
        ]
    return notes


def _given_fewer(standing: Standing, setting: Setting) -> bool:
    return standing.requests < setting.requests and standing.contender.name != LIMIT


def drawing(standings: list[Standing], setting: Setting) -> str:
    """Give an SVG of CPU µs a request (or a chunk), on a logarithmic scale; its background is transparent."""
    per = setting.chunks or 1
    bars = sorted((s for s in standings if s.rounds), key=lambda s: s.cpu)
    if not bars:
        return ""
    low = 10.0 ** math.floor(math.log10(bars[0].cpu / per))
    high = 10.0 ** math.ceil(math.log10(bars[-1].cpu / per))
    ours = named(standings, OURS)
    bottom = TOP + ROW * len(bars)

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log10(value / low) / math.log10(high / low)

    what = "chunk" if setting.chunks else "request"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 30}" role="img">',
        f"<title>{html.escape(setting.title)}</title><style>{STYLE}</style>",
        f'<text class="title" x="10" y="20">CPU µs a {what} (less is better, logarithmic scale)</text>',
        f'<text x="10" y="40">{html.escape(setting.title)}</text>',
    ]
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        x = across(10.0**power)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{10.0**power:,g}</text>')
    for k, standing in enumerate(bars):
        y, value, name = TOP + ROW * k, standing.cpu / per, standing.contender.name
        kind = "limit" if name == LIMIT else "ours" if name.startswith("fastllm ") else "other"
        times = f"  ({standing.cpu / ours.cpu:.2g} ×)" if ours and standing is not ours else ""
        parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{html.escape(name)}</text>')
        parts.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{across(value) - LEFT:.1f}" height="18" rx="2"/>')
        parts.append(f'<text x="{across(value) + 6:.1f}" y="{y + 13}">{value:,.3g}{times}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
