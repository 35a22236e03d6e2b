"""Speed of a config: student step, critic step and sampling, with compile time, memory and share of
a matmul peak.

    make bench           # or: python experiments/bench.py --config=configs/x.py[:arg] [--batch 128]
      [--json FILE]

Weights are random and batches synthetic: neither data nor a trained teacher is needed. One device
is used.
"""

import argparse
import functools
import os
import pathlib
import resource
import statistics
import sys
import time

from fdistill.errors import UserError
from fdistill.files import process

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Dataset -> shape and classes, so that it has not to be there.
DATA = {
    'digits': ((8, 8, 1), 10),
    'mixture': ((2,), 0),
    'mnist': ((28, 28, 1), 10),
    'cifar10': ((32, 32, 3), 10),
    'cifar10_jpeg': ((32, 32, 3), 10),
    'imagenet_resized/64x64': ((64, 64, 3), 1000),
}
LONG_ENOUGH = 0.1  # seconds: a shorter program is run several times for one measurement


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f'{message}; see --help')


def cores():
    """Those that this process may use."""
    affinity = getattr(os, 'sched_getaffinity', None)
    return len(affinity(0)) if affinity else os.cpu_count()


def parse(words):
    parser = Parser(
        description=__doc__.split('\n')[0],
        allow_abbrev=False,
        epilog='Any value of the config can be set: --config.a.b=c.',
    )
    parser.add_argument(
        '--config', default='configs/digits_f_distill.py:js', help='default: %(default)s'
    )
    parser.add_argument('--batch', type=int, help="default: the config's")
    parser.add_argument(
        '--repeats', type=int, default=5, help='measurements of each program; default: %(default)s'
    )
    parser.add_argument(
        '--shape', help='of one sample, as 32,32,3; default: that of the dataset in the config'
    )
    parser.add_argument('--classes', type=int, help='0 for none; default: likewise')
    parser.add_argument('--json', metavar='FILE', help='also write the numbers there')
    options, overrides = parser.parse_known_args(words)
    for word in overrides:
        if not word.startswith('--config.') or '=' not in word:
            parser.error(f'unknown argument {word}')
    for name, least in (('batch', 1), ('repeats', 1), ('classes', 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f'--{name}={value}: need at least {least}')
    if options.shape is not None:
        try:
            options.shape = tuple(int(size) for size in options.shape.split(','))
        except ValueError:
            options.shape = (0,)
        if min(options.shape) < 1 or len(options.shape) not in (1, 3):
            parser.error('--shape: give height,width,channels as 32,32,3, or one number for points')
    return options, overrides


def resolve(options, overrides):
    """The config as a run would keep it, without reading data; and its batch size."""
    from fdistill import config as configs

    config = configs.load(options.config)
    configs.override(config, overrides)
    plain = configs.to_json(config)
    data = plain.get('data', {})
    name = data.get('dataset', data.get('name'))
    # Latents say in the config what they are.
    shape, classes = DATA.get(name, (data.get('shape'), data.get('num_classes')))
    if name in DATA and data.get('name') == 'tfds':
        shape, classes = _reduced(shape, classes, data)
    shape = options.shape or shape
    classes = classes if options.classes is None else options.classes
    if shape is None or classes is None:
        raise UserError(
            f'--config={options.config}: no shape known for data {name!r}; '
            'give --shape and --classes'
        )
    plain['image'] = {'shape': list(shape), 'num_classes': classes}
    # What training takes from a folder or file, which need not be there.
    for part in ('start', 'teacher'):
        section = plain.get(part, {})
        if section.keys().isdisjoint(('workdir', 'weights')):
            continue
        folder = section.get('workdir', '')
        known = _known(folder)
        if known is None and 'name' not in plain.get('network', {}):
            raise UserError(
                f'--config={options.config}: has no network, and no file of configs/ is that of '
                f'config.{part}' + f', {folder}' * bool(folder)
            )
        for name in ('network', 'denoiser'):
            section[name] = (known or plain).get(name, {})
            plain.setdefault(name, section[name])
        if 'name' not in plain['network']:
            plain['network'] = section['network'] | plain['network']
    return plain, options.batch or plain.get('training', {}).get('batch_size') or 1


def _reduced(shape, classes, data):
    """The shape and the number of classes after `data.size` and `data.classes`."""
    import numpy as np

    from fdistill import config as configs
    from fdistill.data import sources

    kept = tuple(data.get('classes') or ())
    black, labels = np.zeros((1, *shape), np.uint8), np.zeros(1, np.int32)
    source = sources.Source(black, labels + (kept[0] if kept else 0), classes, 255, data['dataset'])
    with configs.told('config.data'):
        source = sources.reduced(source, data.get('size'), kept)
    return source.images.shape[1:], source.num_classes


def _known(folder):
    """The config of a run by the name of its folder, or None: ours train runs/x-teacher by
    configs/x_teacher.py, and runs/x-teacher-small by configs/x_teacher.py:small."""
    from fdistill import config as configs

    name = pathlib.Path(folder).name
    head, _, last = name.rpartition('-')
    for words, argument in ((name, ''), (head, f':{last}')):
        file = REPOSITORY / 'configs' / f'{words.replace("-", "_")}.py'
        if file.is_file():
            try:
                return configs.to_json(configs.load(f'{file}{argument}'))
            except UserError:
                if not argument:
                    raise  # Else the last word of the folder is no argument of that config.
    return None


def programs(plain, size):
    """(nfe, state, {step's name: compile()}, (generate, its inputs), evaluate(params)).

    A step is compiled as a run does it: compile() -> (advance(state) -> state, its programs).
    `evaluate` is one evaluation of the network, from which the FLOPs of a sampler with many follow.
    """
    import jax
    import jax.numpy as jnp

    from fdistill import build
    from fdistill.training import loop, sharding
    from fdistill.training.state import bare, empty_metrics, measured

    built = build.experiment(plain)
    method = built.method
    # Schedules make no difference to speed.
    optimizers = build.optimizers(plain | {'training': {'steps': 100}}, method)
    key = jax.random.key(0)
    image = jax.random.normal(key, (size, *built.shape))
    label = jnp.arange(size, dtype=jnp.int32) % max(built.num_classes, 1)
    condition = {'label': label} if built.num_classes else {}
    batch = {'x': image, 'condition': condition}
    frozen = {
        # Weights that a student starts with are of its own network.
        name: jax.jit(built.parts.get(name, built.student).init)(key, image, condition)
        for name in built.frozen
    }
    mesh = sharding.mesh_over(jax.devices()[:1])
    frozen, batch, key = jax.device_put((frozen, batch, key), sharding.replicated(mesh))
    training = loop.Training(steps=100, batch_size=size, ema_half_life=1e5)
    made = loop.programs(method, optimizers, training, frozen, batch, key, mesh)
    target = loop.named(made, mesh)

    def compiled(role):
        traced = made.gradient(role)
        lowered = made.update.lower(target, traced.out_info, role=role, last=True)
        gradient, update = traced.lower().compile(), lowered.compile()

        def advance(state):
            return update(state, gradient(bare(state), made.read, batch, key))

        return advance, (gradient, update)

    roles = sorted(method.losses, reverse=True)
    steps = {f'{role} step': functools.partial(compiled, role) for role in roles}
    state = made.init(frozen, key)._replace(**empty_metrics(measured(target)))
    sigma = jnp.ones(size)
    evaluate = jax.jit(lambda params: built.student.apply(params, image, sigma, condition)[0])
    generator = method.generator
    generate = jax.jit(generator.sample)
    return generator.nfe, state, steps, (generate, (image, condition)), evaluate


def peak_matmul(repeats=5):
    """The largest rate of float32 matrix products on one device, in FLOP/s, over sizes from 512
    on."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(lambda a: a @ a)
    best, size = 0.0, 512
    while size <= 16384:
        a = jnp.ones((size, size), jnp.float32)
        product(a).block_until_ready()
        fastest = min(_timed(lambda a=a: product(a).block_until_ready()) for _ in range(repeats))
        best = max(best, 2 * size**3 / fastest)
        if fastest > 0.05:
            break
        size *= 2
    return best


def _timed(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _flops(compiled):
    cost = compiled.cost_analysis() or {}
    return float((cost[0] if isinstance(cost, list) else cost).get('flops', float('nan')))


def _bytes(compiled):
    """Memory of a program's arguments, results and temporaries."""
    memory = compiled.memory_analysis()
    if memory is None:
        return float('nan')
    sizes = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return sizes - memory.alias_size_in_bytes


def measure(compiled, carry, size, repeats):
    """One row, and the carry after all runs. compiled() -> (run(carry) -> carry, its programs); a
    step donates its state, so it is passed on."""
    import jax

    began = time.perf_counter()
    run, made = compiled()
    compile_seconds = time.perf_counter() - began

    def several(count):
        nonlocal carry
        for _ in range(count):
            carry = run(carry)
        jax.block_until_ready(carry)

    several(1)
    calls = max(1, round(LONG_ENOUGH / _timed(lambda: several(1))))
    seconds = [_timed(lambda: several(calls)) / calls for _ in range(repeats)]
    median = statistics.median(seconds)
    row = {
        'images_per_second': size / median,
        'milliseconds': 1e3 * median,
        'spread': (max(seconds) - min(seconds)) / median,
        'compile_seconds': compile_seconds,
        'gflop': sum(map(_flops, made)) / 1e9,
        'program_mib': max(map(_bytes, made)) / 2**20,
    }
    return row, carry


def peak_memory():
    """(MiB, of what): the device's own count, or where it keeps none the process's resident
    peak."""
    import jax

    counted = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    if counted is not None:
        return counted / 2**20, 'device'
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 'process'


def main(words=None):
    options, overrides = parse(words)
    import jax

    from fdistill.files import disk

    if options.json is not None:
        disk.file_for(options.json, '--json')
    plain, size = resolve(options, overrides)
    # On a shared machine the peak moves, so it is taken before and after.
    peak = peak_matmul()
    try:
        nfe, state, steps, (generate, inputs), evaluate = programs(plain, size)
        rows = {}
        for name, compiled in steps.items():
            rows[name], state = measure(compiled, state, size, options.repeats)
        params = state.averages['ema']

        def sampler():
            program = generate.lower(params, *inputs).compile()
            return lambda _: program(params, *inputs), [program]

        rows['sampling'], _ = measure(sampler, None, size, options.repeats)
        if nfe > 1:
            # XLA counts the body of the sampler's loop once.
            rows['sampling']['gflop'] = nfe * _flops(evaluate.lower(params).compile()) / 1e9
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        raise UserError(
            f'batch of {size}: does not fit into memory; give a smaller --batch'
        ) from error
    peak = max(peak, peak_matmul())
    for row in rows.values():
        row['share_of_peak'] = row['gflop'] * 1e12 / row['milliseconds'] / peak
    memory, kind = peak_memory()
    report = {
        'config': options.config,
        'overrides': overrides,
        'batch': size,
        'repeats': options.repeats,
        'device': jax.devices()[0].device_kind,
        'cores': cores(),
        'jax': jax.__version__,
        'matmul_peak_gflops': peak / 1e9,
        'peak_memory_mib': memory,
        'peak_memory_of': kind,
        'nfe': nfe,
        'programs': rows,
    }
    print(' '.join([options.config, *overrides]))
    print(
        f'batch {size}, {report["device"]}, {report["cores"]} cores, jax {report["jax"]}, '
        f'{options.repeats} repeats'
    )
    print(
        f'float32 matmul peak {peak / 1e9:.0f} GFLOP/s, peak memory of the {kind} {memory:.0f} MiB'
    )
    print(
        f'{"":14}{"images/s":>10}{"ms":>10}{"spread":>8}'
        f'{"compile s":>11}{"GFLOP":>10}{"of peak":>9}{"MiB":>8}'
    )
    for name, row in rows.items():
        print(
            f'{name:14}{row["images_per_second"]:10.4g}{row["milliseconds"]:10.2f}'
            f'{row["spread"]:8.0%}{row["compile_seconds"]:11.1f}{row["gflop"]:10.3f}'
            f'{row["share_of_peak"]:9.0%}{row["program_mib"]:8.0f}'
        )
    if options.json:
        disk.write_json(options.json, report)
    return 0


if __name__ == '__main__':
    # A program out of the cache would take no time to compile.
    os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
    process.prepare()
    try:
        sys.exit(main())
    except UserError as error:
        print(f'bench: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
