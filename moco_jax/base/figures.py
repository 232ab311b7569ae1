"""Pictures drawn with matplotlib: neighbours, view pairs, search results, comparisons."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from moco_jax.base import files
from moco_jax.base.text import printable


def shown(image: np.ndarray) -> np.ndarray:
    """Return the channels of an image uint8 `[H, W, C]` that can be drawn.

    Three channels or more: the first three, as RGB; fewer: the first, `[H, W]`, as gray.
    """
    return image[..., :3] if image.shape[-1] >= 3 else image[..., 0]


def _save(figure: Figure, path: epath.Path) -> None:
    """Write `figure` to the PNG `path`, whole or not at all."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, dpi=110, format="png")
    files.write(path, buffer.getvalue())


def neighbours(
    path: epath.Path,
    queries: np.ndarray,
    columns: dict[str, np.ndarray],
    right: dict[str, np.ndarray] | None,
) -> None:
    """Draw each query image with its nearest images, one block of columns for each encoder.

    Args:
        path: the PNG to write.
        queries: uint8 `[R, H, W, C]`, shown as `shown` says.
        columns: title -> uint8 `[R, N, H, W, C]`, nearest first.
        right: title -> bool `[R, N]`, whether a neighbour is of the query's class, masked where one
            has no label; None without labels.
    """
    blocks = {"image": queries[:, None], **columns}
    rows, widths = len(queries), [block.shape[1] for block in blocks.values()]
    width, height = 0.75 * (sum(widths) + 0.4 * len(columns)) + 0.2, 0.75 * rows + 0.6
    figure = Figure(figsize=(width, height))
    left = 0.1
    for (title, block), cells in zip(blocks.items(), widths, strict=True):
        # Axes for each image would take ten times as long.
        axes = figure.add_axes(
            (left / width, 0.05 / height, 0.75 * cells / width, 0.75 * rows / height)
        )
        left += 0.75 * (cells + 0.4)
        for row, column in np.ndindex(rows, cells):
            place = (column + 0.04, column + 0.96, row + 0.96, row + 0.04)
            axes.imshow(shown(block[row, column]), "gray", vmin=0, vmax=255, extent=place)
            colour, thick = "black", 0.8
            if (
                right is not None
                and title in right
                and right[title][row, column] is not np.ma.masked
            ):
                colour, thick = "#2a9d4a" if right[title][row, column] else "#d03030", 2.5
            axes.add_patch(
                Rectangle(
                    (place[0], place[3]), 0.92, 0.92, fill=False, color=colour, linewidth=thick
                )
            )
        axes.set(xlim=(0, cells), ylim=(rows, 0), aspect="auto")
        axes.set_axis_off()
        axes.set_title(title, loc="left", fontsize=10)
    _save(figure, path)


def view_pairs(path: epath.Path, images: Sequence[np.ndarray], pairs: np.ndarray) -> None:
    """Draw images beside the two views drawn of each.

    Args:
        path: the PNG to write.
        images: uint8 `[H, W, C]` each, N of them, of any size; shown as `shown` says.
        pairs: uint8 `[N, 2, S, S, C]`, query and key view.
    """
    blocks = 2 if len(images) > 1 else 1
    rows = -(-len(images) // blocks)
    figure = Figure(figsize=(1.9 * 3.2 * blocks, 1.9 * rows + 0.5))
    ratios = [1, 1, 1, 0.2] * blocks
    grid = figure.add_gridspec(
        rows,
        len(ratios) - 1,
        width_ratios=ratios[:-1],
        wspace=0.04,
        hspace=0.04,
        left=0.01,
        right=0.99,
        bottom=0.01,
        top=1 - 0.45 / (1.9 * rows + 0.5),
    )
    for number, (image, pair) in enumerate(zip(images, pairs, strict=True)):
        row, block = number % rows, number // rows
        for column, (title, picture) in enumerate(
            {"image": image, "query": pair[0], "key": pair[1]}.items()
        ):
            axes = figure.add_subplot(grid[row, 4 * block + column])
            axes.imshow(shown(picture), "gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[], anchor="N")
            if row == 0:
                axes.set_title(title, loc="left", fontsize=10)
    _save(figure, path)


def _short(name: str, length: int) -> str:
    """Shorten a long name to its end, which distinguishes images."""
    return name if len(name) <= length else f"...{name[3 - length :]}"


def ranked(
    path: epath.Path,
    queries: Sequence[tuple[str, np.ndarray | None]],
    results: Sequence[Sequence[tuple[str, str, np.ndarray | None]]],
) -> None:
    """Draw each query image and, to its right, what was found for it, best first.

    Args:
        path: the PNG to write.
        queries: name and image of each, uint8 `[H, W, C]`, shown as `shown` says; None: the image
            is gone.
        results: for each query as many of (score, name, image).
    """
    rows, columns = len(queries), len(results[0])
    width, height = 1.5, 1.85
    figure = Figure(figsize=(width * (columns + 1.25), height * rows + 0.1))
    grid = figure.add_gridspec(
        rows,
        columns + 2,
        width_ratios=[1, 0.2, *[1] * columns],
        wspace=0.06,
        hspace=0.32,
        left=0.01,
        right=0.99,
        bottom=0.01,
        top=1 - 0.4 / (height * rows + 0.1),
    )
    for row, (name, image) in enumerate(queries):
        cells = [(0, "query", name, image)]
        cells += [(number, *cell) for number, cell in enumerate(results[row], 2)]
        for column, score, name, image in cells:
            axes = figure.add_subplot(grid[row, column])
            if image is None:
                axes.text(0.5, 0.5, "gone", ha="center", va="center", color="gray")
                axes.set(box_aspect=1)
            else:
                axes.imshow(shown(image), "gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            title = f"{score}\n{_short(printable(name), 24)}"
            axes.set_title(title, loc="left", fontsize=7, pad=2, parse_math=False)
    _save(figure, path)


def ablation(path: epath.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw a comparison, a panel for each table: kNN accuracy over `x`.

    Bars show one standard deviation over seeds.

    Args:
        path: the PNG to write.
        rows: each with `table`, `line`, `x` (numbers, or names), and `mean` and `deviation` with
            `knn` and `top1`. Where `x` is a name, the contrastive accuracy stands beside: a leak
            shows in it.
    """
    tables = list(dict.fromkeys(row["table"] for row in rows))
    columns = min(len(tables), 2)
    rows_of_panels = -(-len(tables) // columns)
    figure = Figure(figsize=(5.6 * columns, 3.8 * rows_of_panels), layout="constrained")
    panels = figure.subplots(rows_of_panels, columns, squeeze=False).ravel()
    for axes in panels[len(tables) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, tables, strict=False):
        panel = [row for row in rows if row["table"] == name]
        ticks = list(dict.fromkeys(row["x"] for row in panel))
        counts = all(isinstance(x, int) for x in ticks)
        for number, line in enumerate(dict.fromkeys(row["line"] for row in panel)):
            chosen = [row for row in panel if row["line"] == line]
            x = [row["x"] if counts else ticks.index(row["x"]) for row in chosen]
            named = isinstance(ticks[0], str)
            for score, style in (("knn", "o"), ("top1", "x")) if named else (("knn", "o-"),):
                axes.errorbar(
                    x,
                    [100 * row["mean"][score] for row in chosen],
                    [100 * (row["deviation"][score] or 0) for row in chosen],
                    fmt=style,
                    capsize=3,
                    color=f"C{number}",
                    label=f"{line}, contrastive top-1" if score == "top1" else line,
                )
        if counts:
            axes.set_xscale("log", base=2)
            axes.set_xlabel("negatives (K)")
        else:
            axes.set_xticks(range(len(ticks)), [str(t).replace("_", "\n") for t in ticks])
            axes.set_xlabel(name)
        axes.set_ylabel("accuracy (%)" if isinstance(ticks[0], str) else "kNN accuracy (%)")
        axes.set_title(name, loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    _save(figure, path)
