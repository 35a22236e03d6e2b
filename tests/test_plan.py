"""A run tried on devices that are not there: what its programs send and need."""

import importlib.util
import itertools
import json
import pathlib
import sys

import jax
import pytest
from ml_collections import ConfigDict

from fdistill import build, cli
from fdistill.build.plan import outline, remedies
from fdistill.errors import UserError
from fdistill.training import cost, estimate, topology

# Two programs as XLA writes them: a loop that turns three times, a branch, the ways to name a
# group, and a TPU's reduce-scatter and gather in two phases.
PROGRAM = """
HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %all-reduce.1 = f32[8,4] all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %all-reduce.1)
}

%all-reduce-scatter.7 (q: f32[16]) -> f32[4] {
  %q = f32[16]{0} parameter(0)
  %all-reduce.2 = f32[16] all-reduce(%q), channel_id=2, replica_groups=[2,4]<=[8]
  ROOT %cut = f32[4]{0} dynamic-slice(%all-reduce.2, %i), dynamic_slice_sizes={4}
}

%all-reduce-scatter.8 (q: f32[16]) -> f32[4] {
  %q.1 = f32[16]{0} parameter(0)
  %all-reduce.3 = f32[16] all-reduce(%q.1), channel_id=2, replica_groups=[2,4]<=[8]
  ROOT %cut.1 = f32[4]{0} dynamic-slice(%all-reduce.3, %i), dynamic_slice_sizes={4}
}

%begin (r: bf16[2,8]) -> bf16[16,8] {
  %r = bf16[2,8]{1,0} parameter(0)
  ROOT %g = u8[9] all-gather(%r), channel_id=3, replica_groups=mesh['a'=8], device_ids=(0) {'a'}
}

%end (s: bf16[2,8]) -> bf16[16,8] {
  %s = bf16[2,8]{1,0} parameter(0)
  ROOT %all-gather.4 = bf16[16,8] all-gather(%s), channel_id=3, replica_groups=mesh['a'=8] {'a'}
}

ENTRY %main (u: f32[16], v: bf16[2,8]) -> f32[4] {
  %u = f32[16]{0} parameter(0)
  %v = bf16[2,8]{1,0} parameter(1)
  %w = (s32[], f32[8,4]{1,0}) while(%i), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %f = bf16[16,8]{1,0} fusion(%v), kind=kCustom, calls=%begin
  %g = bf16[16,8]{1,0} fusion(%v), kind=kCustom, calls=%end
  %permuted = f32[16] collective-permute(%u), channel_id=4, source_target_pairs={{0,1},{1,0}}
  %m = pred[16] all-gather-start(%flags), channel_id=5, replica_groups=mesh['a'=8] {'a':(2)4}
  %n = f32[4]{0} fusion(%u), kind=kCustom, calls=%all-reduce-scatter.8
  ROOT %o = f32[4]{0} fusion(%u), kind=kCustom, calls=%all-reduce-scatter.7
  %flags = pred[4]{0} constant({...})
}
"""


def test_what_a_program_sends_is_counted_from_its_text():
    sent = cost.collectives(PROGRAM)
    assert sent == {
        'all-gather': (2, 7 * 2 * 8 * 2 + 3 * 4),  # Of 8 devices, two bytes; of 4, one byte.
        'all-reduce': (3, 3 * 2 * 1 / 2 * 8 * 4 * 4),
        'collective-permute': (1, 16 * 4),
        'reduce-scatter': (2, 2 * 3 / 4 * 16 * 4),
    }
    chip = cost.Chip(flops=10.0, memory=1.0, bandwidth=4.0, interconnect=100.0)
    assert cost.seconds(chip, 20.0, 2.0, {'all-gather': cost.Collective(1, 50.0)}) == {
        'products': 2.0,
        'memory': 0.5,
        'interconnect': 0.5,
    }


def config(**changes):
    law = dict(name='lognormal')
    network = dict(name='mlp', width=256, blocks=1, embedding=8)
    sections = dict(
        data=dict(name='mixture', mixture='ring', labelled=False, n=100),
        network=network,
        teacher=dict(workdir='none'),
        method=dict(
            name='diff_instruct', student_law=law, critic_law=law, cycle='dmd2', student_every=3
        ),
        optimizer={role: dict(learning_rate=1e-3) for role in ('student', 'critic')},
        training=dict(steps=10, batch_size=16, ema_half_life=100.0),
        mesh=dict(fsdp=8),
    )
    return ConfigDict(sections | changes)


def test_a_plan_says_what_each_device_needs(tmp_path, capsys):
    """Sizes are known from the shapes: three networks, one of them frozen, another's average, two
    moments of two. Neither the teacher's folder nor the data's is there."""
    result = build.plan(config(), 'cpu:8', tmp_path / 'out')
    written = json.loads((tmp_path / 'out' / 'plan.json').read_text())
    assert written == json.loads(json.dumps(result))
    # Of 256 x 256 weights an eighth; the rest of a network is on every device.
    one = result['memory']['averages']
    assert 2 * 4 * 256**2 / 8 < one < 4 * 4 * 256**2 / 8
    memory = result['memory']
    assert memory['parameters'] == 2 * one and memory['frozen'] == one
    assert memory['optimizer'] == pytest.approx(4 * one, abs=100)
    assert memory['batch'] == 16 * 2 * 4 / 8
    assert memory['needed'] >= 8 * one and 'fits' not in result
    assert sum(memory.values()) == pytest.approx(2 * memory['needed'])
    shares = {name: program.get('share') for name, program in result['programs'].items()}
    student, critic = (
        {f'{role} {half}': share for half in ('gradient', 'update')}
        for role, share in (('student', 0.4), ('critic', 1.0))
    )
    assert shares == {'init': None} | student | critic
    for role in ('critic', 'student'):
        program = result['programs'][f'{role} gradient']
        assert program['flops'] > 0 and program['sent']['all-gather']['bytes'] > 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 + 2 * 5 and all(line.startswith('cpu:8: ') for line in said)
    page = (tmp_path / 'out' / 'plan.txt').read_text()
    assert 'data 1 x fsdp 8' in page and 'student gradient' in page


@pytest.mark.parametrize(
    'said, used',
    [
        (
            'XLA:TPU compile permanent error. Used 20.50G of 15.75G hbm. Exceeded hbm by 4.75G.',
            20.5,
        ),
        (
            'Ran out of memory on HBM, the total memory required for HLO temporaries (16.18G) '
            'exceeds available HBM (15.75G).',
            16.18,
        ),
    ],
)
def test_a_program_that_does_not_fit_is_told_by_the_compiler(said, used):
    class Lowered:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError(f'RESOURCE_EXHAUSTED: {said}')

    found = estimate._analysed(Lowered, 1, (), cost.CHIPS['v5e'], {})
    assert found['memory'] == used * 2**30 and not found['fits']


def test_outline_needs_neither_data_nor_teacher(tmp_path):
    data = dict(name='tfds', dataset='cifar10', data_dir=str(tmp_path))
    plain = outline(config(data=data))
    assert plain['image'] == {'shape': [32, 32, 3], 'num_classes': 10}
    assert plain['teacher']['network'] == plain['network']
    plain = outline(config(teacher=dict(weights='none.safetensors')))
    assert plain['teacher']['network'] == plain['network']
    without = config(teacher=dict(weights='none.safetensors'))
    del without.network
    with pytest.raises(UserError, match='weights=none.safetensors: is not there to name its net'):
        outline(without)
    without = config()
    del without.network
    with pytest.raises(UserError, match='workdir=none: is not there .* --teacher=FILE'):
        outline(without)
    file = tmp_path / 'teacher.py'
    file.write_text(
        'from ml_collections import ConfigDict\n'
        'def get_config():\n'
        "    data = dict(name='mixture', mixture='ring', labelled=False, n=100)\n"
        "    return ConfigDict(dict(data=data, network=dict(name='mlp', width=32)))\n"
    )
    plain = outline(without, str(file))
    assert plain['network'] == plain['teacher']['network'] == {'name': 'mlp', 'width': 32}


def test_remedies_leave_the_numbers_as_they_are_as_long_as_they_can():
    network = dict(name='adm', model_channels=64, bfloat16=False)
    plain = dict(network=network, training=dict(batch_size=64), mesh=dict(fsdp=1))
    assert list(remedies(plain, 16)) == [
        {'mesh.fsdp': 8},
        {'network.remat': 'elementwise'},
        {'network.remat': 'blocks'},
        {'training.microbatches': 2},
        {'training.microbatches': 4},
        {'network.bfloat16': True},
    ]
    done = dict(network=network | dict(remat=True, bfloat16=True), mesh=dict(fsdp=8))
    assert not list(remedies(done | dict(training=dict(batch_size=16)), 16))


def test_a_search_stops_at_what_fits(tmp_path, monkeypatch, capsys):
    """Remedies are laid on top of one another; exit code 1 where nothing fits."""
    module = sys.modules['fdistill.build.plan']
    sizes = itertools.chain((9, 7, 6, 3), itertools.repeat(9))
    chip = cost.Chip(1.0, 4.0, 1.0, 1.0)

    def estimate(method, optimizers, training, frozen, batch, *, mesh, chip, say):
        needed = next(sizes)
        memory = {'needed': needed, 'chip': chip.memory}
        common = {'programs': {}, 'assumptions': [], 'mesh': dict(mesh.shape), 'devices': 8}
        return common | {'memory': memory, 'fits': needed <= chip.memory}

    monkeypatch.setattr(module, 'estimate', estimate)
    monkeypatch.setattr(topology, 'devices', lambda pod: (jax.devices(), chip))
    small = config(training=dict(steps=1, batch_size=64, ema_half_life=1.0), mesh={})
    found = build.plan(small, 'v5e:2x4', tmp_path, search=True)
    assert found['fits'] and found['changes'] == {'mesh.fsdp': 8, 'training.microbatches': 4}
    assert [one['needed'] for one in found['tried']] == [9, 7, 6]
    assert not build.plan(small, 'v5e:2x4', tmp_path)['fits']
    assert 'DOES NOT FIT' in (page := (tmp_path / 'plan.txt').read_text())
    assert 'what makes it smaller: --config.mesh.fsdp=8' in page
    file = pathlib.Path(__file__).parents[1] / 'configs' / 'ring.py'
    words = [f'--config={file}', '--topology=v5e:2x4', '--search', f'--out={tmp_path}']
    assert cli.main(['plan', *words]) == 1


@pytest.mark.parametrize(
    'words, message',
    [
        ((), 'plan: --topology is missing; see `fdistill plan --help`'),
        (('--topology=v5e',), '--topology=v5e: give a kind of chip and its shape'),
        (('--topology=cpu:2x2',), '--topology=cpu:2x2: give a kind of chip'),
        (('--topology=cpu:9',), '--topology=cpu:9: this process has only 8 simulated devices'),
        (('--topology=v9:2x2',), "--topology: unknown 'v9'; known: v4, v5e, v5p, v6e"),
        (('--topology=v5e:2x2',), "is missing; pip install 'fdistill[plan]'"),
        (('--topology=cpu:8', '--search'), '--search: what cpu:8 holds is not known'),
        (('--topology=cpu:8', '--config.mesh.fsdp=3'), 'fsdp=3: does not divide the 8 devices'),
        (('--topology=cpu:8', '--config.training.batch_size=9'), 'batch_size=9 is not divisible'),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
    file = pathlib.Path(__file__).parents[1] / 'configs' / 'ring.py'
    assert cli.main(['plan', f'--config={file}', f'--out={tmp_path / "out"}', *words]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and message in error
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason="needs pip install 'fdistill[plan]'"
)
def test_pods_of_tpus_compute_alike_and_send_what_fsdp_does(tmp_path):
    """At as much of a batch a chip, from 8 chips to 256. A critic's step gathers two networks, and
    scatters the gradients of one (arXiv 2304.11277)."""
    pods = {'v5e:2x4': 8, 'v5e:16x16': 256, 'v4:4x4x4': 64, 'v5p:4x4x4': 64, 'v6e:16x16': 256}
    assert {pod.split(':')[0] for pod in pods} == set(cost.CHIPS)
    network, split, flops = dict(name='mlp', width=1024, blocks=2, embedding=8), 4 * 4 * 2**20, []
    for pod, devices in pods.items():
        training = dict(steps=10, batch_size=64 * devices, ema_half_life=100.0)
        result = build.plan(
            config(mesh=dict(fsdp=8), network=network, training=training), pod, tmp_path
        )
        assert result['fits'] and 0 < result['seconds_a_step'] < 0.1
        program = result['programs']['critic gradient']
        sent = {kind: one['bytes'] for kind, one in program['sent'].items()}
        assert sent['all-gather'] == pytest.approx(2 * split * 7 / 8, rel=0.1)
        assert sent['reduce-scatter'] == pytest.approx(split * 7 / 8, rel=0.1)
        flops.append(program['flops'])
    assert max(flops) <= 1.02 * min(flops)
