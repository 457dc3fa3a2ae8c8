"""A picture of a comparison, as SVG: for each workload one line per policy, from the median to the 99th percentile.

Times are on a logarithmic axis, since policies differ by factors. Macro-tasks show their makespan over its lower bound
instead. Written by hand, so that no library for plots is needed; colours follow the reader's light or dark scheme.
"""

from __future__ import annotations

from math import ceil, floor, log10
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmd.edges.simulate.results import Summary

WIDTH: Final = 440
LABELS: Final = 110
RIGHT: Final = 56
ROW: Final = 22
HEAD: Final = 34
FOOT: Final = 30
MARGIN: Final = 16
ACROSS: Final = 2
STEPS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STYLE: Final = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 } .head { font-weight: 600; font-size: 14px }
  .page { fill: #ffffff } .grid { stroke: #d8dee4 } .dim { fill: #59636e }
  .range { stroke: #8c959f; stroke-width: 4; stroke-linecap: round } .dot { fill: #59636e }
  .ours .range { stroke: #4493f8 } .ours .dot { fill: #0969da } .ours text { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .page { fill: #0d1117 } .grid { stroke: #30363d } .dim { fill: #9198a1 }
    .range { stroke: #656c76 } .dot { fill: #c0c8d0 } .ours .range { stroke: #1f6feb } .ours .dot { fill: #79c0ff }
  }
"""


class _Axis:
    """From a value to its place: logarithmic between whole powers of ten, or linear from 1."""

    def __init__(self, values: Sequence[float], is_time: bool) -> None:
        self.is_time = is_time
        low, high = min(values), max(values)
        if is_time:
            self._low: float = floor(log10(max(low, 1e-3)))
            self._high: float = max(ceil(log10(max(high, 1e-3))), self._low + 1)
        else:
            self._low, self._high = 1.0, max(1.08, high * 1.02)

    def x(self, value: float) -> float:
        at = log10(max(value, 1e-3)) if self.is_time else value
        share = (at - self._low) / (self._high - self._low)
        return LABELS + min(max(share, 0.0), 1.0) * (WIDTH - LABELS - RIGHT)

    def ticks(self) -> Iterator[tuple[float, str]]:
        if self.is_time:
            for power in range(int(self._low), int(self._high) + 1):
                yield 10.0**power, f"{10.0**power:g} s"
        else:
            step = next(step for step in STEPS if self._high - self._low <= 8 * step or step == STEPS[-1])
            for number in range(int((self._high - self._low) / step) + 1):
                yield self._low + number * step, f"{self._low + number * step:g}"


def picture(summed: Sequence[Summary]) -> str:
    """The whole picture as the text of an SVG file."""
    groups: dict[str, list[Summary]] = {}
    for one in summed:
        groups.setdefault(one.workload, []).append(one)
    panels, tops, lines = list(groups.items()), [MARGIN] * ACROSS, list[str]()
    for name, group in panels:
        column = tops.index(min(tops))
        height = HEAD + ROW * len(group) + FOOT
        lines += [f'<g transform="translate({MARGIN + column * (WIDTH + MARGIN)},{tops[column]})">']
        lines += [*_panel(name, group, height), "</g>"]
        tops[column] += height + MARGIN
    width = MARGIN + min(ACROSS, max(1, len(panels))) * (WIDTH + MARGIN)
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {max(tops)}" width="{width}" height="{max(tops)}"'
    title = "<title>Sojourn times by workload and policy</title>"
    page = f'<rect class="page" width="{width}" height="{max(tops)}"/>'
    return "\n".join([f"<svg {box}>", title, f"<style>{STYLE}</style>", page, *lines, "</svg>"]) + "\n"


def _panel(name: str, group: Sequence[Summary], height: int) -> Iterator[str]:
    ratios = all(one.figures["makespan_ratio"].mean for one in group)
    what = "makespan over lower bound" if ratios else "p50, p90 and p99 of sojourn"
    rows = [_values(one, ratios) for one in group]
    axis = _Axis([value for row in rows for value in row], is_time=not ratios)
    yield f'<text class="head" x="0" y="14">{escape(name)}</text>'
    yield f'<text class="dim" x="{WIDTH - RIGHT}" y="14" text-anchor="end">{what}</text>'
    for value, label in axis.ticks():
        x, foot = axis.x(value), height - FOOT
        yield f'<line class="grid" x1="{x:.1f}" y1="{HEAD - 10}" x2="{x:.1f}" y2="{foot}"/>'
        yield f'<text class="dim" x="{x:.1f}" y="{foot + 15}" text-anchor="middle">{label}</text>'
    for at, (one, row) in enumerate(zip(group, rows, strict=True)):
        yield from _line(one.policy, row, axis, HEAD + at * ROW + 6)


def _values(one: Summary, ratios: bool) -> list[float]:
    if ratios:
        return [one.figures["makespan_ratio"].mean]
    return [one.figures[name].mean / 1000 for name in ("p50_ms", "p90_ms", "p99_ms")]


def _line(policy: str, values: Sequence[float], axis: _Axis, y: int) -> Iterator[str]:
    ours = ' class="ours"' if policy == "adaptive" else ""
    yield f"<g{ours}>"
    yield f'<text x="{LABELS - 10}" y="{y + 4}" text-anchor="end">{escape(policy)}</text>'
    first, last = axis.x(values[0]), axis.x(values[-1])
    if len(values) > 1:
        yield f'<line class="range" x1="{first:.1f}" y1="{y}" x2="{last:.1f}" y2="{y}"/>'
    for value in values:
        yield f'<circle class="dot" cx="{axis.x(value):.1f}" cy="{y}" r="4"/>'
    yield f'<text x="{last + 9:.1f}" y="{y + 4}">{values[-1]:.3g}{" s" if axis.is_time else ""}</text>'
    yield "</g>"
