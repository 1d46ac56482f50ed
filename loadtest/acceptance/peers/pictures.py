"""Draws panels as Grafana does, from what Prometheus said: JSON on stdin, one PNG for each picture.

{"pictures": [{"file": PATH, "title": TEXT, "columns": N, "panels": [PANEL]}], "marks": [{"at": S, "text": TEXT, "color": C}], "span": [BEGIN, END]}
A panel has title, unit, width (of columns), kind ("lines", "stack", "stairs", "heatmap"), low, high, limits [[value, color]], series [{"name", "color", "dashed", "points": [[S, VALUE]]}].
"""
import io
import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as pyplot  # noqa: E402
import numpy  # noqa: E402
from matplotlib.colors import LinearSegmentedColormap, PowerNorm  # noqa: E402
from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: E402
from PIL import Image  # noqa: E402

PAGE, CARD, EDGE, INK, FAINT = "#111217", "#181b1f", "#2c3235", "#d8d9da", "#8e9197"


def si(value, suffix=""):
    for limit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g} {name}{suffix}"
    return f"{value:g}{suffix}"


def seconds(value):
    return f"{value:g} s" if abs(value) >= 1 or value == 0 else f"{value * 1e3:g} ms"


UNITS = {"percentunit": lambda value: f"{round(value * 100, 6):g}%", "reqps": lambda value: si(value), "s": seconds, "short": si, "none": si}


def clock(begin):
    def write(at, _):
        passed = round(at)
        return f"{'-' if passed < 0 else ''}{abs(passed) // 60}:{abs(passed) % 60:02}"

    return FuncFormatter(write)


def draw_heatmap(axes, panel, scheme):
    """A column for each second and a row for each bucket, coloured by requests per second."""
    rows = panel["series"]
    times = sorted({at for row in rows for at, _ in row["points"]})
    lookup = [dict(map(tuple, row["points"])) for row in rows]
    cumulative = numpy.array([[row.get(at, 0.0) for at in times] for row in lookup])
    grid = numpy.diff(cumulative, axis=0, prepend=0).clip(min=0)
    shown = [n for n in range(len(rows)) if grid[n].max() > 0.05]
    first, last = max(min(shown) - 1, 0), min(max(shown) + 1, len(rows) - 1)
    grid = grid[first : last + 1]
    colors = LinearSegmentedColormap.from_list("side", [CARD, scheme])
    axes.pcolormesh(numpy.append(times, times[-1] + 1) - 0.5, numpy.arange(len(grid) + 1), numpy.ma.masked_less(grid, 0.02), cmap=colors, norm=PowerNorm(0.5, vmin=0, vmax=max(grid.max(), 1)), rasterized=True)
    axes.set_yticks(range(1, len(grid) + 1), [seconds(float(rows[first + n]["name"])) if rows[first + n]["name"] != "+Inf" else "more" for n in range(len(grid))])
    axes.set_ylim(0, len(grid))


def draw(axes, panel, marks, span):
    axes.set_facecolor(CARD)
    write = UNITS[panel["unit"]]
    if panel["kind"] == "heatmap":
        draw_heatmap(axes, panel, panel["color"])
    elif panel["kind"] == "stack":
        times = sorted({at for series in panel["series"] for at, _ in series["points"]})
        layers = [[dict(map(tuple, series["points"])).get(at, 0) for at in times] for series in panel["series"]]
        axes.stackplot(times, layers, colors=[series["color"] for series in panel["series"]], alpha=0.55, linewidth=0)
    else:
        for series in panel["series"]:
            times, values = zip(*series["points"]) if series["points"] else ((), ())
            axes.plot(times, values, color=series["color"], linewidth=1.1 if series.get("thin") else 1.7, linestyle=(0, (4, 3)) if series.get("dashed") else "-", drawstyle="steps-post" if panel["kind"] == "stairs" and not series.get("thin") else "default")
            if not series.get("dashed") and not series.get("thin") and len(panel["series"]) <= 3:
                axes.fill_between(times, values, 0, color=series["color"], alpha=0.10, linewidth=0, step="post" if panel["kind"] == "stairs" else None)
    if panel["kind"] != "heatmap":
        low, high = axes.get_ylim()
        low, high = panel.get("low", min(low, 0)), panel.get("high", high)
        if low < 0 < high and panel.get("low") is None:
            axes.axhline(0, color=FAINT, linewidth=0.6)
        axes.set_ylim(low, high)
        for value, color in panel.get("limits", ()):
            axes.axhline(value, color=color, linewidth=1, linestyle=(0, (6, 4)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(True, color=EDGE, linewidth=0.6)
    for mark in marks:
        axes.axvline(mark["at"], color=mark["color"], linewidth=1.1, linestyle=(0, (3, 2)), alpha=0.9)
        axes.plot([mark["at"]], [0], marker="^", markersize=5, color=mark["color"], clip_on=False, transform=axes.get_xaxis_transform(), zorder=5)
    axes.set_xlim(*span)
    axes.xaxis.set_major_formatter(clock(span[0]))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 1.5, 2, 3, 5, 6, 10]))
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    for side in axes.spines.values():
        side.set_color(EDGE)
    axes.set_title(panel["title"], loc="left", color=INK, fontsize=10.5, fontweight="bold", pad=8)
    if panel["kind"] != "heatmap":
        handles = [pyplot.Line2D([], [], color=series["color"], linewidth=3, linestyle="-") for series in panel["series"]]
        columns = min(len(handles), 4)
        axes.legend(handles, [series["name"] for series in panel["series"]], loc="upper left", bbox_to_anchor=(-0.01, -0.10), ncols=columns, frameon=False, fontsize=8, labelcolor=INK, handlelength=1.1, columnspacing=1.2, handletextpad=0.5)


def picture(one, marks, span):
    columns, panels = one["columns"], one["panels"]
    rows, used = [[]], 0
    for panel in panels:
        if used + panel["width"] > columns:
            rows.append([])
            used = 0
        rows[-1].append((panel, used))
        used += panel["width"]
    height = one.get("height", 2.75)
    figure = pyplot.figure(figsize=(13, height * len(rows) + 0.75), facecolor=PAGE, dpi=96)
    grid = figure.add_gridspec(len(rows), columns, left=0.055, right=0.985, top=1 - 0.95 / (height * len(rows) + 0.75), bottom=0.62 / (height * len(rows) + 0.75), hspace=0.55, wspace=one.get("gap", 0.6))
    for y, row in enumerate(rows):
        for panel, x in row:
            draw(figure.add_subplot(grid[y, x : x + panel["width"]]), panel, marks, span)
    top = 1 - 0.3 / (height * len(rows) + 0.75)
    figure.text(0.012, top, one["title"], color=INK, fontsize=12.5, fontweight="bold", va="center")
    at = 0.985
    for mark in reversed(marks):
        text = figure.text(at, top, mark["text"], color=mark["color"], fontsize=8.5, ha="right", va="center")
        at = text.get_window_extent(figure.canvas.get_renderer()).transformed(figure.transFigure.inverted()).x0 - 0.012
    whole = io.BytesIO()
    figure.savefig(whole, facecolor=PAGE, format="png")
    # So many colours look the same and need half of the room.
    Image.open(whole).convert("RGB").quantize(160, dither=Image.Dither.NONE).save(one["file"], optimize=True)
    pyplot.close(figure)


def main():
    asked = json.load(sys.stdin)
    pyplot.rcParams["font.family"] = ["DejaVu Sans"]
    for one in asked["pictures"]:
        picture(one, asked["marks"], asked["span"])


if __name__ == "__main__":
    main()
