"""The report of a bench: one page that needs nothing else, and the same plots as a picture."""

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from pyproxy.lab.bench import BenchError
from pyproxy.lab.bench_results import (
    FIGURES,
    QUANTILES,
    Mark,
    Run,
    quantile,
    ratio,
    shown,
    shown_time,
)

WIDTH, HEIGHT = 520, 180  # of a plot, without the labels of its marks
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 10, 24
ROW = 15  # of labels
LIGHT = ("#2f6fde", "#e0862a", "#1a936f", "#b2457f", "#7a5cc9", "#8a8d1f", "#3aa3b8", "#b5482f")
DARK = ("#7aa8ff", "#f3ab5f", "#4cc9a0", "#e58bb8", "#b1a4ff", "#c9cc5a", "#6fd0e3", "#f08b73")
GOOD = ("started again", "restored", "added", "put back")

STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --line: #e3e6ea; --text: #1b2430;
  --soft: #5a6675; --good: #16733f; --bad: #b9281a; LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #0e1217; --card: #171d24; --line: #2a323c;
  --text: #e4e8ee; --soft: #98a4b3; --good: #4cc485; --bad: #ff8478; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1280px; padding: 24px; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 17px; margin: 0 0 8px; }
h3 { font-size: 13px; font-weight: 600; color: var(--soft); margin: 16px 0 2px; }
.soft, dt, th { color: var(--soft); font-weight: 400; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px;
  margin: 20px 0; }
.tiles div, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 18px; }
.tiles dt { font-size: 13px; } .tiles dd { margin: 0; font-size: 25px; font-weight: 600; }
.tiles small { display: block; font-size: 13px; font-weight: 400; color: var(--soft); }
.runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr));
  gap: 12px; }
section { min-width: 0; margin-bottom: 12px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-top: 6px; }
th, td { text-align: right; padding: 3px 8px; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; }
.bad { color: var(--bad); } .good { color: var(--good); }
svg { display: block; width: 100%; max-width: 640px; height: auto;
  font: 11px system-ui, sans-serif; }
svg text { fill: var(--soft); } svg .grid { stroke: var(--line); }
svg .under { stroke: var(--card); stroke-width: 3.5; }
svg .mark { stroke-width: 1.3; stroke: var(--bad); stroke-dasharray: 4 3; }
svg .mark.good { stroke: var(--good); }
svg text { paint-order: stroke; stroke: var(--card); stroke-width: 3; }
svg text.bad { fill: var(--bad); } svg text.good { fill: var(--good); }
svg path { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .sense { fill: transparent; } svg .sense:hover { fill: var(--soft); fill-opacity: .12; }
.plots { display: grid; gap: 0 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin: 0 5px 0 0; }
.keys span { margin-right: 14px; white-space: nowrap; font-size: 13px; }
dl.about { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; }
dl.about dd { margin: 0; overflow-wrap: anywhere; }
code { font: 13px ui-monospace, monospace; }
"""


def _colors(colors: Sequence[str]) -> str:
    return " ".join(f"--c{at}: {color};" for at, color in enumerate(colors))


def _color(at: int) -> str:
    return f"var(--c{at % len(LIGHT)})"


def page(runs: Sequence[Run], told: Mapping[str, str], broken: Sequence[str]) -> str:
    """The report as HTML. ``told``: what else there is to say, by name; ``broken``: thresholds."""
    title = " against ".join(run.title for run in runs)
    style = STYLE.replace("LIGHT", _colors(LIGHT)).replace("DARK", _colors(DARK))
    verdict = [f'<p class="bad">✕ {escape(one)}</p>' for one in broken]
    parts = [
        f"<h1>Bench: {escape(title)}</h1>",
        f'<div class="soft">{escape(runs[0].plan.described())}</div>',
        *verdict,
        f'<dl class="tiles">{"".join(_tiles(runs))}</dl>',
        f'<div class="runs">{"".join(_run(run, runs) for run in runs)}</div>',
        f"<section><h2>Figures</h2>{_figures(runs)}</section>",
        "<section><h2>How it was measured</h2>"
        f'<dl class="about">{"".join(_about(told))}</dl></section>',
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Bench: {escape(title)}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _about(told: Mapping[str, str]) -> Iterator[str]:
    for name, text in told.items():
        shown_text = f"<code>{escape(text)}</code>" if name == "command" else escape(text)
        yield f"<dt>{escape(name)}</dt><dd>{shown_text}</dd>"


def _tiles(runs: Sequence[Run]) -> Iterator[str]:
    first, last = runs[0].figures(), runs[-1].figures()
    for name in ("per_second", "p50", "p99", "failures"):
        before, value = shown(name, first[name]), shown(name, last[name])
        shape = ' class="bad"' if name == "failures" and last[name] else ""
        more = ""
        if len(runs) > 1:
            times = ratio(first[name], last[name]) if name != "failures" else ""
            more = f"<small>before: {before} {times.replace('x ', '· × ')}</small>"
        yield f"<div><dt>{FIGURES[name]}</dt><dd{shape}>{value}{more}</dd></div>"


def _figures(runs: Sequence[Run]) -> str:
    heads = "".join(f"<th>{escape(run.title)}" for run in runs)
    found = [run.figures() for run in runs]
    rows = []
    for name, title in FIGURES.items():
        cells = "".join(f"<td>{shown(name, one[name])}" for one in found)
        if len(runs) > 1:
            times = "" if name == "failures" else ratio(found[0][name], found[-1][name])
            cells += f"<td>{times.replace('x', '×')}"
        rows.append(f"<tr><td>{title}{cells}")
    more = "<th>last to first" if len(runs) > 1 else ""
    return f"<table><tr><th>{heads}{more}{''.join(rows)}</table>"


# One run


def _run(run: Run, runs: Sequence[Run]) -> str:
    """Its plots, on the same scales as those of the others, and its tables."""
    rates = _rates(run)
    times = _times(run)
    most = [
        _most(one for other in runs for line in kind(other).values() for one in line)
        for kind in (_rates, _times)
    ]
    parts = [
        f"<section><h2>{escape(run.title)}</h2>",
        '<div class="plots"><div><h3>Requests a second</h3>',
        _lines(run, rates, most[0], _plain, (0, 7), labels=True),
        _keys(rates, (0, 7)) if "failed" in rates else "",
        "</div><div><h3>Response time</h3>",
        _lines(run, times, most[1], shown_time, (2, 1, 3)),
        _keys(times, (2, 1, 3)),
    ]
    shares = {name: count for name, count in run.shares().items() if count or name in run.targets}
    if sum(shares.values()):
        parts += ["</div><div><h3>Share of each target</h3>", _shares(run, list(shares))]
        parts += [_keys(shares), "</div><div>", _table_of_targets(shares)]
    parts += ["</div></div>", _table_of_names(run)]
    if run.errors:
        rows = "".join(
            f'<tr><td class="bad">{escape(error)}<td>{count:,}'
            for error, count in run.errors.most_common(10)
        )
        parts.append(f"<h3>What failed</h3><table>{rows}</table>")
    return "".join(parts) + "</section>"


def _rates(run: Run) -> dict[str, list[float]]:
    lines = {"answered": [one.answered / one.length for one in run.seconds]}
    if any(one.failures for one in run.seconds):
        lines["failed"] = [one.failures / one.length for one in run.seconds]
    return lines


def _times(run: Run) -> dict[str, list[float]]:
    return {f"p{q * 100:g}": [one.quantile(q) for one in run.seconds] for q in QUANTILES}


def _most(values: Iterator[float]) -> float:
    """A round number above all of them."""
    most = max((one for one in values if not math.isnan(one)), default=0) or 1.0
    unit = 10.0 ** math.floor(math.log10(most))
    return next(
        step * unit for step in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * unit >= most
    )


def _keys(names: Mapping[str, object], colors: Sequence[int] = range(1000)) -> str:
    keys = "".join(
        f'<span><i class="key" style="background:{_color(color)}"></i>{escape(name)}</span>'
        for name, color in zip(names, colors, strict=False)
    )
    return f'<div class="keys">{keys}</div>'


class _Plot:
    """The frame of one, and where things are in it."""

    def __init__(self, run: Run, rows: int = 0) -> None:
        self.end = max(run.plan.duration, run.seconds[-1].at if run.seconds else 0.0)
        self.top = TOP + rows * ROW
        self.height = HEIGHT + rows * ROW
        self.run = run

    def x(self, at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(at, 0.0), self.end) / self.end

    def y(self, share: float) -> float:
        return self.height - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def frame(self, labels: Sequence[str]) -> Iterator[str]:
        """``labels``, from the bottom to the top."""
        for at, label in enumerate(labels):
            y = self.y(at / (len(labels) - 1))
            yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" style="stroke-width:1"/>'
            yield f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        step = next(one for one in STEPS if self.end / one <= 8)
        for number in range(int(self.end / step) + 1):
            time = number * step
            yield (
                f'<text x="{self.x(time):.1f}" y="{self.height - 7}" text-anchor="middle">'
                f"{time:g} s</text>"
            )

    def marks(self, rows: Sequence[int] = ()) -> Iterator[str]:
        for at, mark in enumerate(self.run.marks):
            shape = "good" if mark.what in GOOD else "bad"
            x = self.x(mark.at)
            top = TOP + rows[at] * ROW if rows else self.top
            line = f'd="M{x:.1f} {top}V{self.y(0)}"'
            yield f'<path class="under" {line}/><path class="mark {shape}" {line}/>'
            if rows:
                left = x < WIDTH * 0.6
                anchor, shift = ("start", 4) if left else ("end", -4)
                yield (
                    f'<text class="{shape}" x="{x + shift:.1f}" y="{top + 8}"'
                    f' text-anchor="{anchor}">{escape(_said(mark))}</text>'
                )

    def senses(self, said: Sequence[str]) -> Iterator[str]:
        """What is said where one points at a second."""
        for second, text in zip(self.run.seconds, said, strict=True):
            x, end = self.x(second.at - second.length), self.x(second.at)
            yield (
                f'<rect class="sense" x="{x:.1f}" y="{self.y(1):.1f}" width="{end - x:.1f}"'
                f' height="{self.y(0) - self.y(1):.1f}"><title>{escape(text)}</title></rect>'
            )

    def svg(self, label: str, parts: Iterator[str]) -> str:
        box = f'viewBox="0 0 {WIDTH} {self.height}"'
        return f'<svg {box} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


STEPS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400, 10**6, 10**9)


def _said(mark: Mark) -> str:
    return f"{mark.target} {mark.what}, {mark.at:.1f} s"


def _lines(
    run: Run,
    lines: Mapping[str, Sequence[float]],
    most: float,
    value: Callable[[float], str],
    colors: Sequence[int],
    labels: bool = False,
) -> str:
    plot = _Plot(run, len(run.marks) if labels else 0)
    tick = _tick if value is shown_time else value

    def parts() -> Iterator[str]:
        yield from plot.frame([tick(most * at / 4) if at else "0" for at in range(5)])
        for (name, values), color in zip(lines.items(), colors, strict=False):
            for points in _unbroken(run, values):
                at = " ".join(f"{plot.x(x):.1f} {plot.y(y / most):.1f}" for x, y in points)
                yield f'<path data-line="{name}" style="stroke:{_color(color)}" d="M{at}"/>'
                if len(points) == 1:
                    x, y = points[0]
                    spot = f'cx="{plot.x(x):.1f}" cy="{plot.y(y / most):.1f}" r="2.5"'
                    yield f'<circle {spot} style="fill:{_color(color)}"/>'
        yield from plot.marks(range(len(run.marks)) if labels else ())
        yield from plot.senses(
            [
                f"{second.at:.1f} s: "
                + ", ".join(f"{name} {value(line[at])}" for name, line in lines.items())
                for at, second in enumerate(run.seconds)
            ]
        )

    return plot.svg(", ".join(lines), parts())


def _tick(ms: float) -> str:
    return f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms" if ms >= 1 else f"{ms * 1000:g} µs"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.4g}"


def _unbroken(run: Run, values: Sequence[float]) -> Iterator[list[tuple[float, float]]]:
    """Points, each second's at its middle; a list ends where a second had none."""
    points: list[tuple[float, float]] = []
    for second, value in zip(run.seconds, values, strict=True):
        if not math.isnan(value):
            points.append((second.at - second.length / 2, value))
        elif points:
            yield points
            points = []
    if points:
        yield points


def _shares(run: Run, names: Sequence[str]) -> str:
    plot = _Plot(run)

    def parts() -> Iterator[str]:
        yield from plot.frame(["0", "25 %", "50 %", "75 %", "100 %"])
        for second in run.seconds:
            edges = _edges(run.served(second), names)
            x, end = plot.x(second.at - second.length), plot.x(second.at)
            for at, (low, high) in enumerate(pairwise(edges)):
                if high > low:
                    yield (
                        f'<rect data-target="{escape(names[at])}" x="{x:.1f}"'
                        f' y="{plot.y(high):.1f}" width="{max(end - x - 1, 0.5):.1f}"'
                        f' height="{plot.y(low) - plot.y(high):.1f}" style="fill:{_color(at)}"/>'
                    )
        yield from plot.marks()
        yield from plot.senses(
            [
                f"{second.at:.1f} s: "
                + ", ".join(f"{name} {run.served(second)[name]:,}" for name in names)
                for second in run.seconds
            ]
        )

    return plot.svg("share of each target", parts())


def _edges(counts: Mapping[str, int], names: Sequence[str]) -> list[float]:
    """Where each one's share ends, above that of the one before."""
    total = sum(counts.values()) or 1
    edges = [0.0]
    for name in names:
        edges.append(edges[-1] + counts[name] / total)
    return edges


def _table_of_targets(shares: Mapping[str, int]) -> str:
    total = sum(shares.values())
    rows = "".join(
        f"<tr><td>{escape(name)}<td>{count:,}<td>{count / total:.1%}"
        for name, count in shares.items()
    )
    return f"<table><tr><th>target<th>requests<th>share{rows}</table>"


def _table_of_names(run: Run) -> str:
    whole = run.whole()
    if len(whole.names) < 2:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}<td>{buckets.total() + whole.failed[name]:,}"
        f"<td>{whole.failed[name]:,}"
        f"<td>{shown_time(quantile(buckets, 0.5))}<td>{shown_time(quantile(buckets, 0.99))}"
        for name, buckets in whole.names.items()
    )
    return f"<table><tr><th>request<th>requests<th>failed<th>p50<th>p99{rows}</table>"


# The picture


def check_for_matplotlib() -> None:
    """Raises ``BenchError``."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError('a PNG is drawn by matplotlib: pip install "pyproxy-lb[bench]"')


def draw(runs: Sequence[Run], path: Path) -> None:
    """The plots as a PNG, a column for each run. Raises ``BenchError``, ``OSError``."""
    check_for_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4 * len(runs) + 0.6, 7.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(3, len(runs), squeeze=False, sharex="col", sharey="row")
    figure.suptitle(runs[0].plan.described(), fontsize=9, color="#5a6675")
    for column, run in enumerate(runs):
        rates, times, shares = (grid[row][column] for row in range(3))
        _draw_lines(run, rates, times)
        _draw_shares(run, shares)
        _draw_marks(run, rates, times, shares)
        rates.set_title(run.title, fontsize=11, fontweight="bold")
        for one, label in ((rates, "requests a second"), (times, "response time, ms")):
            one.set_ylabel(label if column == 0 else "")
        shares.set_ylabel("share of each target, %" if column == 0 else "")
        shares.set_xlabel("seconds")
        for one in (rates, times, shares):
            one.spines[["top", "right"]].set_visible(False)
            one.grid(axis="y", color="#e3e6ea")
            one.set_axisbelow(True)
            if run is runs[-1] and len(one.get_legend_handles_labels()[1]) > 1:
                one.legend(fontsize=8, framealpha=0.8, loc="center right")
    for one in grid[:2].flat:
        one.set_ylim(bottom=0)  # last, since it ends that the scale follows what is drawn
    figure.savefig(path, format="png")


# Axes of matplotlib are Any: it is imported late.


def _draw_lines(run: Run, rates: Any, times: Any) -> None:
    middles = _middles(run)
    for (name, line), color in zip(_rates(run).items(), (0, 7), strict=False):
        rates.plot(middles, line, color=LIGHT[color], label=name)
    for (name, line), color in zip(_times(run).items(), (2, 1, 3), strict=True):
        times.plot(middles, line, color=LIGHT[color], label=name)


def _draw_shares(run: Run, shares: Any) -> None:
    names = list(run.shares())
    for at, name in enumerate(names):
        edges = [_edges(run.served(one), names)[at : at + 2] for one in run.seconds]
        shares.bar(
            _middles(run),
            [100 * (high - low) for low, high in edges],
            [one.length * (0.94 if len(run.seconds) <= 30 else 1.0) for one in run.seconds],
            [100 * low for low, _ in edges],
            color=LIGHT[at % len(LIGHT)],
            label=name,
        )


def _draw_marks(run: Run, rates: Any, *others: Any) -> None:
    """A line in each, and what it means in the first."""
    for row, mark in enumerate(run.marks):
        shade = "#16733f" if mark.what in GOOD else "#b9281a"
        for one in (rates, *others):
            one.axvline(mark.at, color=shade, linestyle="--", linewidth=1)
        spot = (mark.at, 0.03 + 0.075 * (len(run.marks) - row - 1))
        side, shift = ("left", 3) if mark.at < run.plan.duration * 0.6 else ("right", -3)
        rates.annotate(
            _said(mark),
            spot,
            (shift, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=shade,
            fontsize=8,
            ha=side,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )


def _middles(run: Run) -> list[float]:
    return [one.at - one.length / 2 for one in run.seconds]
