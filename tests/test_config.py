import json
import pathlib

import pytest
from ml_collections import ConfigDict, config_dict

from fdistill import build, config
from fdistill.errors import UserError


@pytest.fixture
def example():
    return ConfigDict(
        {
            'steps': 10,
            'rate': 1e-3,
            'name': 'a',
            'flag': False,
            'shape': (1, 2),
            'limit': config_dict.placeholder(int),
            'nothing': None,
            'listed': [1, 2],
            'optimizer': {'student': {'rate': 1.0}, 'critic': {'rate': 2.0}},
        }
    ).lock()


@pytest.mark.parametrize(
    'key, word, value',
    [
        ('steps', '3', 3),
        ('rate', '3', 3.0),
        ('rate', '1e-4', 1e-4),
        ('name', 'b=c d', 'b=c d'),
        ('flag', 'true', True),
        ('shape', '(4, 5, 6)', (4, 5, 6)),
        ('shape', '4', (4,)),
        ('limit', '4', 4),
        ('optimizer.student.rate', '5', 5.0),
    ],
)
def test_override(example, key, word, value):
    config.override(example, [f'--config.{key}={word}'])
    for part in key.split('.'):
        example = example[part]
    assert example == value and type(example) is type(value)


def test_overrides_follow_references_and_the_last_one_wins():
    steps = config_dict.FieldReference(10)
    example = ConfigDict({'steps': steps, 'twice': steps * 2}).lock()
    config.override(example, ['--config.steps=3', '--config.steps=4'])
    assert example.twice == 8


@pytest.mark.parametrize(
    'argument, message',
    [
        ('--config.stesp=3', 'unknown key config.stesp; did you mean config.steps?'),
        (
            '--config.optimizer.studnet.rate=3',
            'config.optimizer.studnet; did you mean config.optimizer.student?',
        ),
        (
            '--config.optimizer.zzz=3',
            'config.optimizer.zzz; known: config.optimizer.critic, config.optimizer.student',
        ),
        (
            '--config.steps.rate=3',
            'unknown key config.steps.rate: config.steps is a value, 10, not a section',
        ),
        ('--config.steps=1.5', '--config.steps=1.5: not of type int; the config has 10'),
        ('--config.rate=fast', '--config.rate=fast: not of type float; the config has 0.001'),
        ('--config.flag=maybe', '--config.flag=maybe: not of type bool; the config has False'),
        ('--config.shape=(1,', 'not of type tuple; the config has (1, 2)'),
        ('--config.limit=x', 'not of type int; the config has None'),
        (
            '--config.optimizer={"student": 1}',
            'a section cannot be replaced as a whole; set its keys',
        ),
        ('--config.nothing=3', 'config_dict.placeholder'),
        ('--config.listed=3', 'write a tuple for a list'),
    ],
)
def test_override_refuses(example, argument, message):
    before = config.to_json(example)
    with pytest.raises(UserError) as caught:
        config.override(example, [argument])
    assert message in str(caught.value) and '\n' not in str(caught.value)
    assert config.to_json(example) == before


def test_load(tmp_path):
    path = tmp_path / 'x.py'
    path.write_text(
        'from ml_collections import ConfigDict\n'
        'def get_config(size="8"):\n    return ConfigDict({"size": int(size)})\n'
    )
    assert config.load(str(path)).size == 8
    assert config.load(f'{path}:16').size == 16
    assert config.load(str(path)).is_locked
    with pytest.raises(UserError, match=r'line 3: ValueError: .*big'):
        config.load(f'{path}:big')


@pytest.mark.parametrize(
    'text, message',
    [
        ('def get_config(:', 'SyntaxError'),
        ('import nosuchmodule', 'line 1: ModuleNotFoundError'),
        ('x = 1', r'has no get_config\(\)'),
        ('\ndef get_config():\n    return missing', 'line 3: NameError'),
        ('def get_config(): pass', 'returned NoneType; it must return a ConfigDict'),
    ],
)
def test_load_refuses(tmp_path, text, message):
    path = tmp_path / 'x.py'
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        config.load(str(path))


def test_load_refuses_what_is_no_python_file(tmp_path):
    with pytest.raises(UserError, match='no such file'):
        config.load(str(tmp_path / 'x.py'))
    (tmp_path / 'x.yaml').write_text('a: 1')
    with pytest.raises(UserError, match='not a Python file'):
        config.load(str(tmp_path / 'x.yaml'))


def test_json_round_trip_keeps_tuples(example):
    example.unlock()
    del example['listed']
    example.nested = ((1, 2), ('a', None))
    text = json.dumps(config.to_json(example))
    again = config.from_json(json.loads(text))
    assert again.to_dict() == example.to_dict()
    assert again.nested == ((1, 2), ('a', None)) and again.is_locked


def test_json_refuses_what_it_cannot_hold():
    with pytest.raises(UserError, match=r'config.a.b\[1\]: .* cannot be kept'):
        config.to_json(ConfigDict({'a': {'b': (1, len)}}))


def test_read(tmp_path):
    with pytest.raises(UserError, match='has no config.json'):
        config.read(tmp_path)
    (tmp_path / 'config.json').write_text('{"shape": [1')
    with pytest.raises(UserError, match='config.json is damaged'):
        config.read(tmp_path)
    (tmp_path / 'config.json').write_text('{"shape": [1, 2]}')
    assert config.read(tmp_path).shape == (1, 2)


def method(
    *,
    divergence: str,
    rate: float = 1.0,
    shape: tuple[int, ...] = (),
    steps: int | None = None,
    network,
):
    return divergence, rate, shape, steps, network


def test_call():
    section = ConfigDict({'divergence': 'js', 'rate': 2, 'shape': (1, 2), 'steps': None})
    assert config.call(method, section, 'config.method', network='n') == (
        'js',
        2,
        (1, 2),
        None,
        'n',
    )
    assert config.call(lambda **rest: rest, {'a': 1}, 'config.any') == {'a': 1}


@pytest.mark.parametrize(
    'section, message',
    [
        ({'divergense': 'js'}, 'config.method.divergense: unknown; did you mean divergence?'),
        ({'divergence': 'js', 'network': 1}, 'config.method.network: unknown'),
        ({'rate': 1.0}, 'config.method.divergence: missing; it has no default'),
        ({'divergence': 3}, 'config.method.divergence: 3 is of type int; expected str'),
        (
            {'divergence': 'js', 'rate': 'x'},
            "config.method.rate: 'x' is of type str; expected float",
        ),
        (
            {'divergence': 'js', 'rate': True},
            'config.method.rate: True is of type bool; expected float',
        ),
        (
            {'divergence': 'js', 'steps': 1.5},
            'config.method.steps: 1.5 is of type float; expected int | None',
        ),
        (
            {'divergence': 'js', 'shape': (1, 'a')},
            "(1, 'a') is of type tuple; expected tuple[int, ...]",
        ),
        ({'divergence': 'js', 'shape': 1}, 'config.method.shape: 1 is of type int'),
    ],
)
def test_call_refuses(section, message):
    with pytest.raises(ValueError) as caught:
        config.call(method, section, 'config.method', network='n')
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_call_tells_our_errors_from_bugs():
    code = 'def build(rate): raise ValueError(f"rate={rate}; it must not be negative")'

    def raised_in(module):
        namespace = {'__name__': module}
        exec(code, namespace)
        with pytest.raises(ValueError) as caught:
            config.call(namespace['build'], {'rate': -1}, 'config.optimizer')
        return caught.value

    ours, theirs = raised_in('fdistill.training.optim'), raised_in('numpy.linalg')
    assert (
        isinstance(ours, UserError)
        and str(ours) == 'config.optimizer: rate=-1; it must not be negative'
    )
    assert not isinstance(theirs, UserError)


def test_call_refuses_what_a_function_passes_on_in_vain():
    def outer(network, **options):
        return method(divergence='js', network=network, **options)

    assert config.call(outer, {'rate': 2.0}, 'config.method', network='n')[1] == 2
    with pytest.raises(UserError, match='^config.method.raet: unknown$'):
        config.call(outer, {'raet': 2.0}, 'config.method', network='n')


def test_what_a_config_leaves_to_its_default_can_be_set():
    """Of the arguments of the functions that take the section; what they do not take is unknown as
    ever."""
    chosen = config.load(str(pathlib.Path(__file__).parents[1] / 'configs' / 'digits_teacher.py'))
    words = ['evaluate_every=50', 'wandb=mine', 'keep=3']
    build.override(
        chosen,
        [f'--config.training.{word}' for word in words] + ['--config.evaluation.protocol=edm'],
    )
    assert (chosen.training.evaluate_every, chosen.training.wandb, chosen.training.keep) == (
        50,
        'mine',
        3,
    )
    assert chosen.evaluation.protocol == 'edm'
    wrong = (
        ('evaluate_evry=50', 'unknown key'),
        ('evaluate_every=x', 'not of type int'),
        ('stop_at=3', 'unknown key'),
    )
    for word, said in wrong:
        with pytest.raises(UserError, match=said):
            build.override(chosen, [f'--config.training.{word}'])
