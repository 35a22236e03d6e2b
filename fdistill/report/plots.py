"""Figures of a report as PNG files in memory; the only user of matplotlib in the package."""

import io
import math
import textwrap
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Of what is drawn, a tuple each that begins with a name and the index of its colour.
Rows = Sequence[tuple]

GREY = '#767676'  # Legible on white as well as on black: figures have no background.
COLOURS = (
    '#4477aa',
    '#ee6677',
    '#228833',
    '#ccaa22',
    '#33a6cc',
    '#aa3377',
    '#e07b28',
    '#8a8a8a',
    '#7766cc',
    '#6fa03c',
)
STYLES = ('-', '--', ':', '-.')
MARKERS = ('o', 's', '^', 'D')
MOST = 40  # groups in a figure: with more no line could be told from its neighbour.
WIDTH = 4.6  # inches; a phone shows that much without making letters smaller than they are on paper


def _figure(height, rows=1, alike=True):
    figure = Figure(figsize=(WIDTH, height), layout='constrained')
    figure.patch.set_alpha(0)
    axes = figure.subplots(rows, 1, sharey=alike, squeeze=False)[:, 0]
    for axis in axes:
        _dress(axis)
    return figure, axes


def _dress(axis):
    axis.patch.set_alpha(0)
    axis.tick_params(colors=GREY, which='both', labelsize=7.5)
    axis.grid(color=GREY, alpha=0.22, linewidth=0.5)
    for spine in axis.spines.values():
        spine.set_edgecolor(GREY)
    for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
        text.set(color=GREY, fontsize=8.5)


def _png(figure):
    data = io.BytesIO()
    with warnings.catch_warnings():
        # A name may have letters the font lacks, and a legend may want more room than there is.
        warnings.simplefilter('ignore')
        figure.savefig(data, format='png', dpi=130, metadata={'Software': None})
    return data.getvalue()


def _literal(text, longest=42):
    """A name as matplotlib shows it: $ would begin mathematics, and a leading _ hides a label from
    the legend."""
    text = str(text)
    text = text if len(text) <= longest else text[: longest - 1] + '…'
    return (' ' if text.startswith('_') else '') + text.replace('\\', '/').replace('$', r'\$')


def _look(index):
    colour, turn = COLOURS[index % len(COLOURS)], index // len(COLOURS) % len(STYLES)
    return colour, STYLES[turn], MARKERS[turn]


def _legend(figure, axis):
    handles, labels = axis.get_legend_handles_labels()
    columns = max(1, min(4, 66 // (max(map(len, labels)) + 6)))
    figure.legend(
        handles,
        labels,
        loc='outside lower center',
        ncols=columns,
        fontsize=7,
        labelcolor=GREY,
        frameon=False,
    )
    return 0.17 * math.ceil(len(labels) / columns)


def _spread_out(values):
    """Whether positive values span so much that a logarithm is needed."""
    values = np.asarray([value for value in values if value is not None and math.isfinite(value)])
    return bool(len(values) and values.min() > 0 and values.max() > 50 * values.min())


def by_group(rows: Rows, title: str, unit: str) -> bytes:
    """Mean and interval of each group over its seeds, which are the small points.

    Args:
      rows: [(name, index of the group's colour, {mean, half, values})].

    Returns:
      PNG, bytes.
    """
    rows = [row for row in rows if row[2]['mean'] is not None][:MOST]
    figure, (axis,) = _figure(0.9 + 0.24 * len(rows))
    for y, (_, index, found) in enumerate(rows):
        colour, _, marker = _look(index)
        seeds = list(found['values'].values())
        axis.plot(seeds, [y + 0.22] * len(seeds), '|', color=colour, alpha=0.8, markersize=4)
        axis.errorbar(
            found['mean'],
            y,
            xerr=found['half'],
            fmt=marker,
            color=colour,
            markersize=4.5,
            capsize=2.5,
            linewidth=1.3,
        )
    axis.set_yticks(range(len(rows)), [_literal(name, 26) for name, _, _ in rows])
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f'{title} ({unit})')
    if _spread_out([value for _, _, found in rows for value in found['values'].values()]):
        axis.set_xscale('log')
    return _png(figure)


def curves(lines: Rows, key: str) -> bytes:
    """A metric against steps and, where it is known, against wall time.

    Args:
      lines: [(name, index of the group's colour, {step, seconds, mean, half})].

    Returns:
      PNG, bytes.
    """
    lines = lines[:MOST]
    timed = any(None not in found['seconds'] for _, _, found in lines)
    height = 2.0 * (1 + timed)
    figure, axes = _figure(height, 1 + timed)
    log = _spread_out([value for _, _, found in lines for value in found['mean']])
    lowest = min((value for _, _, found in lines for value in found['mean']), default=0)
    for axis, coordinate in zip(axes, ('step', 'seconds')):
        for name, index, found in lines:
            colour, style, _ = _look(index)
            if None in found[coordinate]:
                continue
            mean = np.array(found['mean'])
            half = np.array([half or 0.0 for half in found['half']])
            alone = {'marker': '.'} if len(mean) == 1 else {}
            axis.plot(
                found[coordinate],
                mean,
                style,
                color=colour,
                linewidth=1.2,
                label=_literal(name, 26),
                **alone,
            )
            below = np.maximum(mean - half, lowest / 2) if log else mean - half
            axis.fill_between(
                found[coordinate], below, mean + half, color=colour, alpha=0.13, linewidth=0
            )
        axis.set(xlabel={'step': 'steps', 'seconds': 'seconds of training'}[coordinate])
        axis.set_ylabel(textwrap.fill(_literal(key, 80), 28))
        if log:
            axis.set_yscale('log')
    figure.set_figheight(height + _legend(figure, axes[0]))
    return _png(figure)


def health(
    panels: Sequence[tuple[str, np.ndarray, np.ndarray, tuple[float, float] | None]],
    wrong: Collection[str],
) -> bytes:
    """Metrics of one run against steps, a row each.

    Args:
      panels: [(metric, steps [n], values [n], range of a reference or None)].
      wrong: metrics to be drawn as such.

    Returns:
      PNG, bytes.
    """
    figure, axes = _figure(1.1 * len(panels), len(panels), alike=False)
    for axis, (key, steps, values, band) in zip(axes, panels):
        if band:
            axis.axhspan(*band, color=COLOURS[2], alpha=0.16, linewidth=0)
        axis.plot(steps, values, '.-', color=COLOURS[key in wrong], linewidth=1.1, markersize=3)
        title = _literal(key) + ', wrong' * (key in wrong)
        axis.set_title(title, color=GREY, fontsize=8, loc='left', pad=2)
        if _spread_out([*values, *(band or ())]):
            axis.set_yscale('log')
    axes[-1].set_xlabel('steps; the green band is the range of the reference over its last half')
    return _png(figure)


# Of a denoiser and of what it is held against: key, name, colour, style.
DENOISERS = (
    ('identity', 'x itself', GREY, ':'),
    ('mean', 'mean of the data', GREY, '--'),
    ('linear', 'best linear', COLOURS[3], '-'),
    ('teacher', 'teacher', COLOURS[0], 'o-'),
)


LEVELS = (
    'noise level sigma, in units of the data '
    '(grey: where a picture is made; bands: ± one standard error)'
)


def denoising(
    levels: Sequence[Mapping[str, Any]], shown: Mapping[str, np.ndarray], verdict: str
) -> bytes:
    """Errors of a denoiser by level over those of what is none, and pictures side by side.

    Args:
      levels: rows of `evaluation.teacher.measure`.
      shown: {title: picture, uint8 [h, w, 3]}.
      verdict: the title, a line.

    Returns:
      PNG, bytes.
    """
    figure = Figure(figsize=(2 * WIDTH, 3.4 + 3.3 * bool(shown)), layout='constrained')
    figure.patch.set_facecolor('white')
    heights = [3.4, 3.1][: 1 + bool(shown)]
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    above, *below = parts[:, 0]
    axis = above.subplots()
    _dress(axis)
    sigmas = [row['sigma'] for row in levels]
    for key, name, colour, style in DENOISERS:
        mean, error = (np.array([row[key][of] for row in levels]) for of in ('mean', 'error'))
        axis.plot(sigmas, mean, style, color=colour, linewidth=1.5, markersize=3.5, label=name)
        axis.fill_between(sigmas, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    inside = [row['sigma'] for row in levels if row['middle']]
    axis.axvspan(min(inside), max(inside), color=GREY, alpha=0.08, linewidth=0)
    # What is no denoiser is far above at one end.
    heights = [row[key]['mean'] for row in levels for key in ('teacher', 'linear')]
    heights = [value for value in heights if math.isfinite(value) and value > 0]
    axis.set(xscale='log', yscale='log', xlabel=LEVELS)
    axis.set(ylabel='squared error, EDM weight (no unit)')
    axis.set(ylim=(0.7 * min(heights), max(3.0, 1.5 * max(heights))))
    axis.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
    axis.yaxis.set_minor_formatter(lambda value, _: f'{value:g}' if f'{value:e}'[0] in '25' else '')
    axis.legend(fontsize=8, labelcolor=GREY, frameon=False, ncols=2)
    axis.set_title(textwrap.fill(_literal(verdict, 300), 100), color=GREY, fontsize=9, loc='left')
    for part in below:
        for cell, (title, picture) in zip(
            part.subplots(1, len(shown), squeeze=False)[0], shown.items()
        ):
            cell.imshow(picture, interpolation='nearest')
            cell.set_title(title, color=GREY, fontsize=9)
            cell.set(xticks=[], yticks=[])
            _dress(cell)
    return _png(figure)


def plane(points: Rows, x_label: str, y_label: str, log: bool = False) -> bytes:
    """Groups in the plane of two numbers, each with its interval.

    Args:
      points: [(name, index of the group's colour, x {mean, half}, y {mean, half})].
      log: a logarithmic x, as of network evaluations.

    Returns:
      PNG, bytes.
    """
    points = points[:MOST]
    figure, (axis,) = _figure(2.6)
    for name, index, x, y in points:
        colour, _, marker = _look(index)
        axis.errorbar(
            x['mean'],
            y['mean'],
            xerr=x['half'],
            yerr=y['half'],
            fmt=marker,
            color=colour,
            markersize=5,
            capsize=2.5,
            linewidth=1,
            label=_literal(name, 26),
        )
    axis.set(xlabel=x_label, ylabel=y_label)
    if log:
        ticks = sorted({x['mean'] for _, _, x, _ in points})
        axis.set_xscale('log')
        axis.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
        axis.minorticks_off()
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6))
    if _spread_out([y['mean'] for _, _, _, y in points]):
        axis.set_yscale('log')
    figure.set_figheight(2.6 + _legend(figure, axis))
    return _png(figure)


def weights(lines: Rows, r: np.ndarray) -> bytes:
    """h(r) of divergences, both axes logarithmic.

    Args:
      lines: [(divergence, index of its colour, h [n])].
      r: [n], positive.

    Returns:
      PNG, bytes.
    """
    lines = lines[:MOST]
    figure, (axis,) = _figure(2.9)
    for number, (name, index, h) in enumerate(lines):
        colour, style, _ = _look(index)
        # The parts of a schedule share its colour.
        parts = sum(other == index for _, other, _ in lines[:number])
        style = STYLES[(STYLES.index(style) + parts) % len(STYLES)]
        axis.plot(
            r,
            np.where(h > 0, h, np.nan),
            style,
            color=colour,
            linewidth=1.2,
            label=_literal(name, 60),
        )
    axis.set(
        xscale='log',
        yscale='log',
        ylim=(1e-4, 1e4),
        xlabel='r = teacher / student',
        ylabel="weight h(r) = r² f''(r)",
    )
    figure.set_figheight(2.9 + _legend(figure, axis))
    return _png(figure)


def distributions(lines: Rows, x_label: str) -> bytes:
    """Shares of the samples in the cells of a histogram, a row for each level of the noise.

    Args:
      lines: [(name, index of the group's colour, {edges, mean, half})], as of
        `summary.distributions`.

    Returns:
      PNG, bytes.
    """
    lines = lines[:MOST]
    levels = len(lines[0][2]['mean'])
    figure, axes = _figure(1.15 * levels, levels)
    used = [np.flatnonzero(np.asarray(found['mean']).sum(axis=0)) for _, _, found in lines]
    edges = np.asarray(lines[0][2]['edges'])
    first, last = (
        min(cells[0] for cells in used if len(cells)),
        max(cells[-1] for cells in used if len(cells)),
    )
    for level, axis in enumerate(axes):
        for name, index, found in lines:
            colour, style, _ = _look(index)
            middle = (np.asarray(found['edges'])[1:] + np.asarray(found['edges'])[:-1]) / 2
            mean = np.array(found['mean'][level])
            half = np.array([half or 0.0 for half in found['half'][level]])
            axis.plot(
                middle,
                mean,
                style,
                color=colour,
                linewidth=1.1,
                label=_literal(name),
                drawstyle='steps-mid',
            )
            below = np.maximum(mean - half, 0)
            axis.fill_between(
                middle, below, mean + half, color=colour, alpha=0.13, linewidth=0, step='mid'
            )
        axis.set(xlim=(edges[first] - 0.5, edges[last + 1] + 0.5), ylabel='share')
        axis.set_title(
            f'noise level {level + 1} of {levels}', color=GREY, fontsize=8, loc='left', pad=2
        )
    axes[-1].set_xlabel(x_label)
    figure.set_figheight(1.15 * levels + 0.3 + _legend(figure, axes[0]))
    return _png(figure)


def histogram(
    samples: np.ndarray, x: np.ndarray, density: np.ndarray | None, limits: tuple[float, float]
) -> bytes:
    """Points on the line [n] over the true density [m] at x [m], or over none; PNG, bytes."""
    figure, (axis,) = _figure(1.9)
    inside = samples[np.isfinite(samples)]
    count, edges = np.histogram(inside, 60, limits)
    share = count / max(len(samples), 1) / np.diff(edges)
    axis.stairs(share, edges, fill=True, color=COLOURS[0], alpha=0.55, label='samples')
    if density is not None:
        axis.plot(x, density, color=COLOURS[1], linewidth=1.2, label='true density')
    axis.set(xlim=limits, xlabel='x', ylabel='density')
    axis.legend(fontsize=7, labelcolor=GREY, frameon=False)
    return _png(figure)
