"""A report as a document of plain blocks, and that as one HTML file or as Markdown.

Every name, setting and message comes from config files and folders, so that nothing reaches either
without being escaped.
"""

import base64
import hashlib
import html as escaping
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fdistill.evaluation.protocol import MARK
from fdistill.report import summary

PAIRS = 100  # tests a table shows, the clearest first; report.json has all
LIMIT = 5_000_000  # bytes of a page


class Figure(NamedTuple):
    """A picture of the page.

    part: of the page it belongs to, a key of PARTS.
    name: for its file.
    caption: for people.
    png: bytes of the file.
    """

    part: str
    name: str
    caption: str
    png: bytes


class Heading(NamedTuple):
    level: int
    text: str


class Text(NamedTuple):
    text: str
    strong: bool = False


class Table(NamedTuple):
    """head: names of columns.
    rows: lists of cells, each a string or (string, number to sort by)."""

    head: list[str]
    rows: list[list[str | tuple[str, float]]]


class Figures(NamedTuple):
    """figures: [(file name, `Figure`)]."""

    part: str
    figures: list[tuple[str, Figure]]


class Folded(NamedTuple):
    title: str
    blocks: list['Block']


Block = Heading | Text | Table | Figures | Folded

PARTS = {
    'samples': (
        'Samples of the same noise',
        'The first seed of each group, all from the same noise and labels.',
    ),
    'measures': (
        'Measures by group',
        'Points are means, bars 95 % intervals of Student over the seeds, ticks the seeds.',
    ),
    'divergences': (
        'Divergences and gradients',
        'The weight h of the density ratio, and what it did to the gradient. The variance of the '
        'gradient norm is over the lines of the log, each a mean since the line before; it '
        'includes the trend. The noise, half the mean squared change from line to line, does not.',
    ),
    'quality': (
        'Quality against steps and time',
        'Evaluations on the way (`evaluate_every`), against steps and, interpolated in '
        'timing.jsonl, against wall time.',
    ),
    'curves': (
        'Training',
        'Means of the seeds against steps and, interpolated in timing.jsonl, against wall time.',
    ),
}


def files(figures: Sequence[Sequence[Figure]]) -> list[list[str]]:
    """Names of the PNG files: [[name]] as figures are [[Figure]] by comparison."""

    def slug(text):
        return re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:50]

    return [
        [f'{index}-{k:02d}-{slug(figure.name)}.png' for k, figure in enumerate(drawn, 1)]
        for index, drawn in enumerate(figures, 1)
    ]


def document(report: Mapping[str, Any], figures: Sequence[Sequence[Figure]]) -> list[Block]:
    """The blocks of a report.

    Args:
      report: of `summary.summarise`, with `paths`.
      figures: [[Figure]], as its comparisons.
    """
    states = [run['status'] for run in report['runs']]
    counts = ', '.join(
        f'{states.count(state)} {state}'
        for state in ('done', 'failed', 'missing')
        if state in states
    )
    blocks = [
        Heading(1, 'Report'),
        Text(f'{len(states)} runs ({counts}) in {", ".join(report["paths"])}.'),
    ]
    blocks += [Text(note, strong=True) for note in report['notes']]
    several = len(report['comparisons']) > 1
    names = files(figures)
    for index, comparison in enumerate(report['comparisons']):
        data = ', '.join(
            f'{key.removeprefix("data.")}={_value(value)}'
            for key, value in sorted(comparison['data'].items())
        )
        blocks.append(
            Heading(2, f'{f"Comparison {index + 1}. " if several else ""}Data: {data or "unknown"}')
        )
        blocks += _comparison(
            comparison, report['differing'], list(zip(names[index], figures[index]))
        )
    blocks += [Heading(2, 'Runs'), *_runs(report)]
    common = [[key, _value(value)] for key, value in sorted(report['common'].items())]
    blocks.append(Folded('Settings that all runs share', [Table(['setting', 'value'], common)]))
    blocks += [
        Heading(2, 'Versions'),
        Text('Of what made this report, and of what the runs were measured with.'),
    ]
    theirs = dict.fromkeys(
        summary.as_text(versions) for run in report['runs'] if (versions := run['versions'])
    )
    rows = [
        [
            key,
            value,
            ', '.join(dict.fromkeys(json.loads(text).get(key, '–') for text in theirs))
            or 'unknown',
        ]
        for key, value in report['versions'].items()
    ]
    rows += [
        [key, '–', ', '.join(dict.fromkeys(json.loads(text).get(key, '–') for text in theirs))]
        for key in dict.fromkeys(key for text in theirs for key in json.loads(text))
        if key not in report['versions']
    ]
    return [*blocks, Table(['what', 'report', 'runs'], rows)]


def _comparison(comparison, differing, figures):
    groups, chosen = comparison['groups'], comparison['measure']
    keys = [chosen, *(key for key in comparison['measures'] if key != chosen)]
    blocks = [
        Text(word, strong=word.startswith(('not separated', MARK)))
        for word in comparison['rankings'][chosen]['words']
    ]
    rows = {row['group']: row for row in comparison['rankings'][chosen]['rows']}
    head = ['group', f'place by {chosen}', *keys, 'seeds', 'nfe']
    scores = []
    for group in groups:
        seeds = f'{len(group["seeds"])}' + (
            f', {len(group["failed"])} FAILED' if group['failed'] else ''
        )
        place = _place(rows[group['name']]) if group['name'] in rows else ('–', None)
        cells = [_score(group['measures'][key]) for key in keys]
        scores.append(
            [
                group['name'],
                place,
                *cells,
                (seeds, len(group['seeds'])),
                (number(group['nfe']), group['nfe']),
            ]
        )
    blocks += [
        Table(head, scores),
        Text(
            'Mean ± half the 95 % interval of Student over the seeds; nfe: '
            'network evaluations a sample. A place is a range: it counts separated groups only.'
        ),
    ]
    if failed := [[one['name'], one['error']] for group in groups for one in group['failed']]:
        blocks += [
            Text(
                'Failed trials. They are in no mean, which flatters the groups they are missing '
                'from.',
                strong=True,
            ),
            Table(['trial', 'error'], failed),
        ]
    for part, (title, explanation) in PARTS.items():
        if shown := [(name, figure) for name, figure in figures if figure.part == part]:
            blocks += [Heading(3, title), Text(explanation)]
            if part == 'divergences' and (logged := _logged(groups)):
                blocks.append(logged)
            blocks.append(Figures(part, shown))
    blocks += [
        Heading(3, 'Tests'),
        Text(
            "Student's paired t test of every pair of groups over the seeds they share, two-sided; "
            'p is corrected by Holm '
            'over the pairs of a measure, not over measures. Separated: below 0.05.'
        ),
    ]
    blocks += [Folded(f'Tests of {key}', _tests(comparison['rankings'][key])) for key in keys]
    blocks.append(Heading(3, 'Settings that differ'))
    theirs = {
        key: by
        for key, by in differing.items()
        if len({_value(by.get(group['name'])) for group in groups}) > 1
    }
    if theirs:
        rows = [
            [group['name'], *(_value(by.get(group['name'], '')) for by in theirs.values())]
            for group in groups
        ]
        blocks.append(Table(['group', *theirs], rows))
    else:
        blocks.append(Text('None but the seed.'))
    digests = comparison['digests']
    rows = [
        [key, name, *(of[:16] for of in digests.get(key, ('', '')))]
        for key, name in comparison['protocol'].items()
    ]
    head = ['measure', 'protocol', 'detector, SHA-256', 'statistics, SHA-256']
    wide = slice(None if digests else 2)
    return [
        *blocks,
        Heading(3, 'Protocol of each number'),
        Table(head[wide], [row[wide] for row in rows]),
    ]


def _logged(groups):
    keys = [key for key in summary.STATISTICS if any(key in group['logged'] for group in groups)]
    rows = [
        [
            group['name'],
            *(
                _score(group['logged'][key]) if key in group['logged'] else ('–', None)
                for key in keys
            ),
        ]
        for group in groups
    ]
    head = [f'{title} ({unit})' for title, unit in (summary.STATISTICS[key] for key in keys)]
    return Table(['group', *head], rows) if keys else None


def _tests(ranking):
    places = [
        [
            row['group'] + f' ({MARK})' * (row['group'] in ranking['trained_on']),
            _place(row),
            ', '.join(row['not_separated']) or 'none',
        ]
        for row in ranking['rows']
    ]
    blocks = [
        *(Text(word) for word in ranking['words']),
        Table(['group', 'place', 'not separated from'], places),
    ]
    tests = sorted(
        ranking['tests'], key=lambda test: (test['holm'], 1.0 if test['p'] is None else test['p'])
    )
    if not tests:
        return blocks
    if len(tests) > PAIRS:
        blocks.append(Text(f'The {PAIRS} clearest of {len(tests)} pairs; report.json has all.'))
    rows = [
        [
            test['a'],
            test['b'],
            (interval(test['difference'], test['half']), test['difference']),
            (str(test['n']), test['n']),
            (number(test['t']), test['t']),
            (number(test['p']), test['p']),
            (number(test['holm']), test['holm']),
            'separated'
            if test['separated']
            else 'not separated' + (f': {test["note"]}' if test['note'] else ''),
        ]
        for test in tests[:PAIRS]
    ]
    return [
        *blocks,
        Table(['a', 'b', 'a − b', 'common seeds', 't', 'p', 'p (Holm)', 'verdict'], rows),
    ]


def _runs(report):
    rows = [
        [
            run['name'],
            run['group'],
            _value(run['seed']),
            run['status'] + (f': {run["error"]}' if run['error'] else ''),
            run['fingerprint'],
            run['checkpoint'],
            (number(run['seconds']), run['seconds']),
            run['folder'],
        ]
        for run in report['runs']
    ]
    head = [
        'run',
        'group',
        'seed',
        'status',
        'config fingerprint',
        'checkpoint',
        'seconds in all',
        'folder',
    ]
    return [Folded(f'All {len(rows)} runs', [Table(head, rows)])]


def number(value: float | None) -> str:
    """Four digits of a number, or a dash."""
    return '–' if value is None else f'{value:.4g}'


def interval(mean: float | None, half: float | None) -> str:
    """mean ± half, to the second digit of half."""
    if mean is None or half is None:
        return number(mean)
    if not half:
        return f'{number(mean)} ± 0'
    if not 1e-6 <= half < 1e5:
        return f'{mean:.2e} ± {half:.1e}'
    decimals = max(0, 1 - math.floor(math.log10(half)))
    return f'{mean:.{decimals}f} ± {half:.{decimals}f}'


def _score(found):
    lost = f', {found["not_finite"]} not finite' if found.get('not_finite') else ''
    alone = ' (n = 1)' if found['n'] == 1 else ''
    seen = f', {MARK}' if found.get('trained_on') else ''
    return interval(found['mean'], found['half']) + alone + lost + seen, found['mean']


def _place(row):
    best, worst = row['best'], row['worst']
    return (str(best) if best == worst else f'{best}–{worst}'), best + worst / 1e6


def _value(value):
    return value if isinstance(value, str) else summary.as_text(value)


STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1d2126;--dim:#59616b;--line:#d5dae0;
--soft:#f3f5f7;--accent:#1f5fbf}
@media (prefers-color-scheme:dark){:root{--back:#14171b;--text:#e4e7ea;--dim:#a2abb5;
--line:#363c44;--soft:#1e2328;--accent:#86b4ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:16px;background:var(--back);color:var(--text);
font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;margin:.2em 0}
h2{font-size:1.3rem;margin:1.8em 0 .4em;border-bottom:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.5em 0 .3em}p{margin:.4em 0;max-width:80ch}
.wide{overflow-x:auto;margin:.6em 0;border:1px solid var(--line);border-radius:6px;max-height:80vh}
.wide:focus-visible,button:focus-visible,summary:focus-visible{
outline:2px solid var(--accent);outline-offset:1px}
table{border-collapse:collapse;width:100%;font-size:.86rem;font-variant-numeric:tabular-nums;
overflow-wrap:normal}
th,td{padding:4px 9px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
td.n{white-space:nowrap;text-align:right}td{max-width:46ch}
thead th{position:sticky;top:0;background:var(--soft);z-index:1;vertical-align:bottom}
tbody tr:last-child>*{border-bottom:0}
tbody th{font-weight:600;background:var(--back);position:sticky;left:0;max-width:38vw;
overflow-wrap:anywhere;min-width:min(30vw,13em)}thead th:first-child{left:0;z-index:2}
th button{all:unset;cursor:pointer;font-weight:600;display:inline-block}
th[aria-sort=ascending] button::after{content:' \\25B2'}
th[aria-sort=descending] button::after{content:' \\25BC'}
.figures{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr))}
.samples{grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr))}
figure{margin:0;padding:8px;border:1px solid var(--line);border-radius:6px}
img{display:block;width:100%;height:auto}.samples img{image-rendering:pixelated}
.samples img.smooth{image-rendering:auto}
figcaption{font-size:.8rem;color:var(--dim);margin-top:4px}
details{border:1px solid var(--line);border-radius:6px;padding:6px 10px;margin:.5em 0}
summary{cursor:pointer;font-weight:600}
@media (max-width:600px){body{padding:10px}th,td{padding:4px 6px}}
""".strip()

SCRIPT = """
document.querySelectorAll('table').forEach(function(table){
var heads=table.tHead.rows[0].cells,body=table.tBodies[0];
Array.prototype.forEach.call(heads,function(head,column){
head.querySelector('button').addEventListener('click',function(){
var down=head.getAttribute('aria-sort')==='ascending';
Array.prototype.forEach.call(heads,function(other){other.removeAttribute('aria-sort')});
head.setAttribute('aria-sort',down?'descending':'ascending');
var key=function(row){var cell=row.cells[column],v=cell.getAttribute('data-v');
return v===null?cell.textContent:v===''?null:Number(v)};
Array.from(body.rows).map(function(row){return[key(row),row]}).sort(function(a,b){
a=a[0];b=b[0];
if(a===null||b===null)return(a===null)-(b===null);
var order=typeof a==='number'&&typeof b==='number'?a-b:
String(a).localeCompare(String(b),undefined,{numeric:true});
return down?-order:order}).forEach(function(pair){body.appendChild(pair[1])});
});});});
""".strip()


def html(report: Mapping[str, Any], figures: Sequence[Sequence[Figure]]) -> str:
    """The whole page: no request to any network, no script but its own; `document`'s arguments."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    body = '\n'.join(_html(block) for block in document(report, figures))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" '
        'href="data:,">\n'
        f'<title>Report: {_escape(", ".join(report["paths"]))}</title>\n'
        f'<style>{STYLE}</style>\n</head>\n<body>\n<main>\n'
        f'{body}\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )


def fitting(report: Mapping[str, Any], figures: Sequence[Sequence[Figure]]) -> list[list[Figure]]:
    """The figures that fit in a page of LIMIT bytes, those of the first PARTS first; arguments as
    of `document`."""
    left = LIMIT - len(html(report, [[] for _ in figures]).encode())
    kept = [[] for _ in figures]
    for part in PARTS:
        for index, drawn in enumerate(figures):
            for figure in drawn:
                if figure.part == part:
                    left -= len(_html_figures(Figures(part, [('', figure)]))) + 200
                    kept[index] += [figure] if left > 0 else []
    return kept


def _escape(text):
    return escaping.escape(str(text), quote=True)


def _html(block):
    return HTML[type(block)](block)


def _html_text(block):
    return (
        f'<p><strong>{_escape(block.text)}</strong></p>'
        if block.strong
        else f'<p>{_escape(block.text)}</p>'
    )


def _html_table(block):
    head = ''.join(
        f'<th scope="col"><button type="button">{_escape(name)}</button></th>'
        for name in block.head
    )
    rows = '\n'.join(
        '<tr>' + ''.join(map(_html_cell, row, range(len(row)))) + '</tr>' for row in block.rows
    )
    label = _escape(f'Table of {block.head[0]}, {", ".join(block.head[1:])}')
    return (
        '<div class="wide" tabindex="0" role="region" '
        f'aria-label="{label}"><table>\n<thead><tr>{head}</tr></thead>\n'
        f'<tbody>\n{rows}\n</tbody>\n</table></div>'
    )


def _html_cell(cell, column):
    if not column:
        return f'<th scope="row">{_escape(_shown(cell))}</th>'
    if isinstance(cell, tuple):
        value = '' if cell[1] is None else repr(float(cell[1]))
        return f'<td class="n" data-v="{value}">{_escape(cell[0])}</td>'
    return f'<td>{_escape(cell)}</td>'


def _shown(cell):
    return cell[0] if isinstance(cell, tuple) else cell


def _html_figures(block):
    shown = '\n'.join(
        f'<figure><img{_size(figure.png)} alt="{_escape(figure.caption)}" '
        'src="data:image/png;base64,'
        f'{base64.b64encode(figure.png).decode()}">'
        f'<figcaption>{_escape(figure.caption)}</figcaption></figure>'
        for _, figure in block.figures
    )
    return f'<div class="figures {block.part}">\n{shown}\n</div>'


def _size(png):
    """Width and height, from the header of the file, so that the page does not jump; a plot is not
    enlarged dot by dot."""
    width, height = (int.from_bytes(png[start : start + 4], 'big') for start in (16, 20))
    return f' width="{width}" height="{height}"' + (' class="smooth"' if width > 256 else '')


def _html_folded(block):
    inside = '\n'.join(map(_html, block.blocks))
    return f'<details><summary>{_escape(block.title)}</summary>\n{inside}\n</details>'


HTML = {
    Heading: lambda block: f'<h{block.level}>{_escape(block.text)}</h{block.level}>',
    Text: _html_text,
    Table: _html_table,
    Figures: _html_figures,
    Folded: _html_folded,
}


def markdown(report: Mapping[str, Any], figures: Sequence[Sequence[Figure]]) -> str:
    """The same page, its figures beside it; `document`'s arguments."""
    return '\n\n'.join(_markdown(block) for block in document(report, figures)) + '\n'


def _markdown(block):
    return MARKDOWN[type(block)](block)


def _mark(text):
    """Text that Markdown shows as it is."""
    text = escaping.escape(' '.join(str(text).split()), quote=False)
    return re.sub(r'([\\`*_\[\]|#~])', r'\\\1', text).replace('://', ':\\//')


def _markdown_text(block):
    return f'**{_mark(block.text)}**' if block.strong else _mark(block.text)


def _markdown_table(block):
    rows = [block.head, ['---'] * len(block.head), *block.rows]
    cells = [
        [cell if index == 1 else _mark(_shown(cell)) for cell in row]
        for index, row in enumerate(rows)
    ]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in cells)


MARKDOWN = {
    Heading: lambda block: '#' * block.level + ' ' + _mark(block.text),
    Text: _markdown_text,
    Table: _markdown_table,
    Figures: lambda block: '\n\n'.join(
        f'![{_mark(figure.caption)}]({name})' for name, figure in block.figures
    ),
    Folded: lambda block: '\n\n'.join([f'**{_mark(block.title)}**', *map(_markdown, block.blocks)]),
}
