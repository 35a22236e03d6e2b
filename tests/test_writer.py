import io
import json
import struct
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fdistill.errors import UserError
from fdistill.training import writer


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(workdir):
    """The events of the one TensorBoard file of a run: records of length, checksum, protobuf,
    checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (workdir / 'tensorboard').iterdir()
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack('<Q', data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_metrics_are_exact_json_lines(tmp_path):
    values = {
        'loss': jnp.float32(0.1),
        'third': 1 / 3,
        'a': float('nan'),
        'b': np.inf,
        'c': -np.inf,
    }
    with writer.Writer(tmp_path) as out:
        out.metrics(7, values)
    (line,) = lines(tmp_path / 'metrics.jsonl')
    assert line == {
        'step': 7,
        'loss': float(np.float32(0.1)),
        'third': 1 / 3,
        'a': 'nan',
        'b': 'inf',
        'c': '-inf',
    }
    assert not (tmp_path / 'timing.jsonl').exists()


def test_a_resumed_run_leaves_the_metrics_of_an_unbroken_one(tmp_path):
    def write(out, first, last):
        for step in range(first, last + 1, 10):
            out.metrics(step, {'loss': 1 / step})
            out.timing(step, {'images_per_second': 5.0})

    for name in ('unbroken', 'resumed'):
        with writer.Writer(tmp_path / name) as out:
            out.truncate(0)
            write(out, 10, 60)
    with open(tmp_path / 'resumed' / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 70, "lo')
    with writer.Writer(tmp_path / 'resumed') as out:
        out.truncate(30)
        assert [line['step'] for line in lines(tmp_path / 'resumed' / 'timing.jsonl')] == [
            10,
            20,
            30,
        ]
        write(out, 40, 60)
    unbroken, resumed = (
        (tmp_path / name / 'metrics.jsonl').read_bytes() for name in ('unbroken', 'resumed')
    )
    assert resumed == unbroken
    assert {path.name for path in (tmp_path / 'resumed').iterdir()} == {
        'metrics.jsonl',
        'timing.jsonl',
        'tensorboard',
    }


def test_truncate_mends_a_line_without_its_end(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.0}')
    with writer.Writer(tmp_path) as out:
        out.truncate(5)
        out.metrics(3, {'a': 3})
    assert [line['step'] for line in lines(tmp_path / 'metrics.jsonl')] == [1, 2, 3]


def test_tensorboard_has_one_file_with_everything(tmp_path):
    with writer.Writer(tmp_path) as out:
        out.truncate(3)
        out.config(
            {'steps': 10, 'student': {'rate': 1e-3, 'shape': (1, 2), 'flag': True, 'none': None}}
        )
        out.metrics(4, {'loss': 0.5})
        out.timing(4, {'images_per_second': 100.0})
        out.image(4, 'samples', np.zeros((8, 6, 3), np.uint8))
    found = events(tmp_path)
    assert [event.step for event in found if event.HasField('session_log')] == [
        4
    ]  # hides a former run's later events
    values = {value.tag: (event.step, value) for event in found for value in event.summary.value}
    assert values['loss'][0] == 4 and values['loss'][1].simple_value == 0.5
    assert values['timing/images_per_second'][1].simple_value == 100
    assert Image.open(io.BytesIO(values['samples'][1].image.encoded_image_string)).size == (6, 8)
    assert b'"rate": 0.001' in values['config/text_summary'][1].tensor.string_val[0]
    assert b'student.rate' in values['_hparams_/session_start_info'][1].metadata.plugin_data.content


def test_histograms_are_counts_and_reach_tensorboard(tmp_path):
    counts = np.array([[0, 3, 1, 0], [0, 0, 0, 5]])
    with writer.Writer(tmp_path) as out:
        out.histograms(20, {'student/log_h': counts}, np.linspace(-2, 2, 5))
        out.histograms(30, {}, np.linspace(-2, 2, 5))
    (line,) = lines(tmp_path / 'histograms.jsonl')
    assert line == {
        'step': 20,
        'edges': [-2.0, -1.0, 0.0, 1.0, 2.0],
        'student/log_h': counts.tolist(),
    }
    found = {value.tag: value.histo for event in events(tmp_path) for value in event.summary.value}
    assert set(found) == {'student/log_h', *(f'student/log_h/noise_level_{k}_of_2' for k in (1, 2))}
    total = found['student/log_h']
    assert (total.min, total.max, total.num, total.sum, total.sum_squares) == (
        -1,
        2,
        9,
        -1.5 + 0.5 + 7.5,
        0.75 + 0.25 + 11.25,
    )
    assert list(total.bucket) == [0, 3, 1, 5] and list(total.bucket_limit) == [-1, 0, 1, 2]


class FakeWandb(types.ModuleType):
    """As much of wandb as is used, writing down what it was asked."""

    def __init__(self):
        super().__init__('wandb')
        self.begun, self.logged, self.config = [], [], {}
        self.Histogram = lambda np_histogram: ('histogram', np.shape(np_histogram[0]))
        self.Image = lambda array: ('image', array.shape)

    def log(self, values, step):
        self.logged.append((step, values))

    def init(self, **options):
        self.begun.append(options)
        config = types.SimpleNamespace(
            update=lambda values, allow_val_change: self.config.update(values)
        )
        return types.SimpleNamespace(
            log=self.log, config=config, finish=lambda: self.logged.append('finished')
        )


def test_weights_and_biases_gets_the_same_and_goes_on_under_its_id(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    for step in (10, 20):
        with writer.Writer(tmp_path / 'run', 'mine') as out:
            out.config({'seed': 3})
            out.metrics(step, {'loss': 0.5})
            out.timing(step, {'seconds': 2.0})
            out.image(step, 'samples', np.zeros((4, 4, 3), np.uint8))
            out.histograms(step, {'h': np.array([[1, 2]])}, [0, 1, 2])
    first, second = fake.begun
    assert (
        first == second
        and first['project'] == 'mine'
        and first['name'] == 'run'
        and first['resume'] == 'allow'
    )
    assert fake.config == {'seed': 3} and fake.logged.count('finished') == 2
    logged = {
        key: value
        for entry in fake.logged
        if entry != 'finished'
        for key, value in entry[1].items()
    }
    assert logged == {
        'loss': 0.5,
        'timing/seconds': 2.0,
        'samples': ('image', (4, 4, 3)),
        'h': ('histogram', (2,)),
        'h/noise_level_1_of_1': ('histogram', (2,)),
    }


def test_weights_and_biases_is_off_unless_asked_for_and_has_to_be_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with writer.Writer(tmp_path) as out:
        out.metrics(1, {'loss': 0.5})
    with pytest.raises(
        UserError, match=r"wandb='mine': .*not installed: pip install 'fdistill\[wandb\]'"
    ):
        writer.Writer(tmp_path / 'new', 'mine')
    assert not (tmp_path / 'new').exists()
    monkeypatch.setattr(writer.jax, 'process_index', lambda: 1)
    with pytest.raises(UserError, match='not installed'):
        writer.Writer(tmp_path / 'new', 'mine')
