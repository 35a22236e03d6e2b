"""Folders from strangers, or damaged: whatever a file in them holds, a command either works or says
what is wrong in one line."""

import json
import re
import shutil

import pytest
import test_mistakes
import test_report

from fdistill import cli
from fdistill import config as configs
from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.training import writer

TRIAL = 'trials/0/'
HISTOGRAM = {'step': 2, 'edges': [0, 1, 2], 'student/log_h': [[1, 2], [3, 4]]}
# What is read of a folder -> what it holds where it is whole.
WHOLE = {
    f'{TRIAL}eval/step-000000100.json': {
        'step': 100,
        'kl': 0.2,
        'protocol': {'kl': 'kl[x]'},
        'details': {'rules': {'name': 'edm'}, 'statistics': {'reference': 'a', 'sha256': 'b'}},
    },
    f'{TRIAL}metrics.jsonl': {'step': 2, 'student/h': 1.0},
    f'{TRIAL}timing.jsonl': {'step': 2, 'seconds': 1.0},
    f'{TRIAL}histograms.jsonl': HISTOGRAM,
    'sweep.json': {'config': 'x.py', 'trials': {'0': {'seed': 0}, '1': {'seed': 1}}},
}
FILES = [f'{TRIAL}config.json', f'{TRIAL}result.json', *WHOLE]
DAMAGE = {
    'empty': b'\n',
    'torn': b'{"step": 1, "protocol": {"k\n',
    'no UTF-8': b'\xff\xfe{}\n',
    'deep lists': b'[' * 100_000 + b'\n',
    'deep dicts': b'{"step": ' * 100_000 + b'\n',
    'deep and whole': b'{"step": ' * 500 + b'1' + b'}' * 500 + b'\n',
    'a list': b'[]\n',
    'null': b'null\n',
    'a number': b'3\n',
    'other keys': b'{"a": []}\n',
    'a dotted key': b'{"a.b": {"c.d": 1}}\n',
    'a huge integer': b'{"step": 1' + b'0' * 400 + b'}\n',
    'digits': b'{"step": 1' + b'0' * 5000 + b'}\n',
    'not a number': b'{"step": NaN}\n',
    'half a character': b'{"step": 1, "status": "\\ud800"}\n',
}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = test_report.make_sweep(tmp_path_factory.mktemp('whole') / 'sweep', {'js': [1.0, 2.0]})
    for name, value in WHOLE.items():
        disk.write_json(folder / name, value)
        if name.endswith('.jsonl'):
            (folder / name).write_text(json.dumps(value) + '\n')
    return folder


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    monkeypatch.setattr('fdistill.report._figures', lambda *given: [])
    return shutil.copytree(whole, tmp_path / 'sweep')


def said(capsys, *words):
    """(exit code, lines on stderr) of a command; the code is not that of a traceback."""
    code = cli.main(list(map(str, words)))
    lines = capsys.readouterr().err.splitlines()
    assert code in (0, 2) and len(lines) == (code == 2), lines
    return code, lines


# Which sections a config must have is asked where they are used.
ALL = [(name, damage) for name in FILES for damage in DAMAGE]
ALL.remove((FILES[0], 'other keys'))


@pytest.mark.parametrize(('name', 'damage'), ALL)
def test_a_damaged_file_is_one_line(name, damage, folder, capsys):
    (folder / name).write_bytes(DAMAGE[damage])
    code, lines = said(capsys, 'report', folder, '--quiet')
    assert code == 2 and f'{folder / name} is damaged' in lines[0], lines
    if name.endswith('config.json'):
        for command in ('sample', 'evaluate'):
            code, lines = said(capsys, command, f'--workdir={folder / TRIAL}')
            assert code == 2


@pytest.mark.parametrize('damage', ['deep lists', 'deep dicts'])
def test_a_report_is_written_anew_whatever_the_one_before_holds(damage, folder, capsys):
    (folder / 'report').mkdir()
    (folder / 'report' / 'report.json').write_bytes(DAMAGE[damage])
    assert said(capsys, 'report', folder, '--quiet') == (0, [])


# Of a file, the path to a value and what it is replaced with.
SHAPES = [
    ('config.json', ('data',), 'digits'),
    ('config.json', ('method', 'name'), []),
    ('config.json', ('seed',), {}),
    ('config.json', ('training',), [1]),
    ('result.json', ('overrides',), []),
    ('result.json', ('overrides', 'seed'), []),
    ('result.json', ('status',), 'lost'),
    ('result.json', ('row',), {}),
    ('result.json', ('row', 'protocol'), {'fid': 'fid[x]'}),
    ('result.json', ('row', 'details'), {'versions': ['jax']}),
    ('result.json', ('seconds',), 'long'),
    ('result.json', ('fingerprint',), 3),
    ('eval/step-000000100.json', ('details', 'rules'), 'edm'),
    ('eval/step-000000100.json', ('protocol',), ['kl']),
    ('eval/step-000000100.json', ('step',), '100'),
    ('timing.jsonl', ('step',), None),
    ('histograms.jsonl', ('edges',), [[0, 1]]),
    ('histograms.jsonl', ('student/log_h',), [[1, 2, 3]]),
    ('histograms.jsonl', ('student/log_h',), 'many'),
    ('histograms.jsonl', ('student/log_h',), [[None, 1]]),
    ('histograms.jsonl', ('student/log_h',), [[1e300, 1]]),
]


@pytest.mark.parametrize(('name', 'path', 'value'), SHAPES)
def test_values_of_another_shape_are_one_line(name, path, value, folder, capsys):
    file = folder / TRIAL / name
    whole = json.loads(file.read_text())
    *above, last = path
    at = whole
    for key in above:
        at = at[key]
    at[last] = value
    file.write_text(json.dumps(whole) + '\n')
    code, lines = said(capsys, 'report', folder, '--quiet')
    assert code == 2 and f'{file} is damaged' in lines[0]


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(network=dict(width=10**9)), 'the network takes .* GiB, .* are free'),
        (dict(network=dict(width=10**12)), 'config.network.width: 1000.* is out of range'),
        (dict(image=dict(shape=[-2], num_classes=0)), 'is damaged: image is .* no sample can be'),
        (dict(image=dict(shape=[2], num_classes=-1)), 'is damaged: image is .* no sample can be'),
        (
            dict(image=dict(shape=[2], num_classes=0, given=dict(x=[0]))),
            'is damaged: image is .* no sample can be',
        ),
        (dict(changes=[dict(step=0)]), 'is damaged: changes.0.setting: missing'),
        (
            dict(changes=[dict(step=0, setting='seed', before=1, after=2)]),
            "is damaged: changes have 'seed', which is no setting of an optimizer",
        ),
        (dict(image=dict(shape=[2**40], num_classes=0)), 'the network takes .* GiB, .* are free'),
        (dict(image=dict(shape=[2], num_classes=10**12)), 'the network takes .* GiB, .* are free'),
    ],
)
def test_a_config_of_another_size_is_one_line(settings, message, tmp_path, capsys):
    plain = configs.to_json(test_mistakes.config(dict(name='sim'), **settings))
    plain.setdefault('image', {'shape': [2], 'num_classes': 0})
    disk.write_json(tmp_path / 'config.json', plain)
    for command in ('sample', 'evaluate'):
        code, (line,) = said(capsys, command, f'--workdir={tmp_path}')
        assert code == 2 and re.search(message, line), line


@pytest.mark.parametrize('name', ['../../outside', '..', '.', '', 'a/b', '/tmp', 'x\0', 'n' * 999])
def test_trials_lie_in_the_folder_of_their_sweep(name, folder, capsys):
    test_report.make(folder.parent / 'outside', 'reverse_kl')
    (folder / 'sweep.json').write_text(json.dumps({'trials': {name: {}}}))
    code, (line,) = said(capsys, 'report', folder, '--quiet')
    assert code == 2 and 'sweep.json is damaged: no trial is called' in line


def test_links_are_not_written_through(folder, tmp_path, capsys):
    """Neither that of a file nor, where the user did not name it, that of a folder."""
    victim = tmp_path / 'victim'
    (victim / 'inner').mkdir(parents=True)
    (victim / 'file').write_text('mine')
    (folder / 'report').mkdir()
    for name in ('report.html', 'report.md', 'report.json'):
        (folder / 'report' / name).symlink_to(victim / 'file')
    assert said(capsys, 'report', folder, '--quiet') == (0, [])
    shutil.rmtree(folder / 'report')
    (folder / 'report').symlink_to(victim / 'inner')
    code, (line,) = said(capsys, 'report', folder, '--quiet')
    assert code == 2 and f'--out={folder / "report"}: is a link; remove it' in line
    # A log is appended to: of a link to nothing, what it names would be made.
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'metrics.jsonl').symlink_to(victim / 'made')
    with writer.Writer(tmp_path / 'run') as out:
        out.truncate(0)
        with pytest.raises(OSError) as error:
            out.metrics(1, {'loss': 1.0})
    assert error.value.errno in cli.PLACES
    assert (victim / 'file').read_text() == 'mine' and not list((victim / 'inner').iterdir())
    assert not (victim / 'made').exists()


def test_lines_may_be_torn_at_their_end_alone(tmp_path):
    path = tmp_path / 'x.jsonl'
    assert disk.read_json_lines(path) == []
    for text in ('{"a": 1}\n{"a": 2}', '{"a": 1}\n{"a": 2}\n{"a": 3', '{"a": 1}\n{"a": 2}\n[]'):
        path.write_text(text)
        assert disk.read_json_lines(path) == [{'a': 1}, {'a': 2}]
    path.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(UserError, match='x.jsonl is damaged: line 2: '):
        disk.read_json_lines(path)


def test_a_file_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, 'MOST_BYTES', 10)
    (tmp_path / 'x').write_text('{"a": 1}  ')
    assert disk.read_json(tmp_path / 'x', dict[str, int]) == {'a': 1}
    (tmp_path / 'x').write_text('{"a": 1}   ')
    with pytest.raises(UserError, match='has more than 10 bytes'):
        disk.read_json(tmp_path / 'x')
