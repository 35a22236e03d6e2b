"""Speed of a config: student step, critic step and sampling, with compile time, memory and share of a matmul peak.

    make bench           # or: python experiments/bench.py --config=configs/digits_f_distill.py:js [--batch 128] [--json FILE]

Weights are random and batches synthetic: neither data nor a trained teacher is needed.
"""

import argparse
import pathlib
import resource
import statistics
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Shape and classes of the data that configs name, so that none of it has to be there.
DATA = {
    'digits': ((8, 8, 1), 10),
    'mixture': ((2,), 0),
    'mnist': ((28, 28, 1), 10),
    'cifar10': ((32, 32, 3), 10),
    'imagenet64': ((64, 64, 3), 1000),
}
TEACHERS = {'digits': 'digits_teacher.py', 'mnist': 'mnist_teacher.py', 'cifar10': 'cifar10_teacher.py'}
TEACHERS |= {'imagenet64': 'imagenet64_teacher.py'}


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--config', default='configs/digits_f_distill.py:js', help='default: %(default)s')
    parser.add_argument('--batch', type=int, help="default: the config's")
    parser.add_argument('--repeats', type=int, default=5, help='timed runs of each program; default: %(default)s')
    parser.add_argument('--json', metavar='FILE', help='also write the numbers there')
    options = parser.parse_args(words)
    if options.repeats < 1 or (options.batch is not None and options.batch < 1):
        parser.error(f'--repeats={options.repeats}, --batch={options.batch}: need at least 1')
    return options


def matmul_peak(repeats=5):
    """Largest rate of float32 matrix products on one device, in FLOP/s, over three sizes."""
    import jax
    import jax.numpy as jnp

    best = 0.0
    for size in (512, 1024, 2048):
        a = jnp.ones((size, size), jnp.float32)
        product = jax.jit(lambda a: a @ a)
        product(a).block_until_ready()
        for _ in range(repeats):
            began = time.perf_counter()
            product(a).block_until_ready()
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def main(words=None):
    options = parse(words)
    import jax
    import jax.numpy as jnp

    from fdistill import build, config
    from fdistill.errors import UserError
    from fdistill.training import state, step, writer

    settings = config.to_json(config.load(options.config))
    section = settings['data']
    data = section['name'] if section['name'] in DATA else section.get('dataset')
    data = 'imagenet64' if data not in DATA and 'imagenet' in str(options.config) else data
    if data not in DATA:
        raise UserError(f'--config={options.config}: data {data!r} has no known shape; known are {", ".join(DATA)}')
    shape, classes = DATA[data]
    settings['image'] = {'shape': list(shape), 'num_classes': classes}
    if 'workdir' in settings.get('teacher', {}):
        known = config.to_json(config.load(str(REPOSITORY / 'configs' / TEACHERS[data])))
        for name in ('network', 'denoiser'):
            settings['teacher'][name] = known[name]
            settings.setdefault(name, known[name])
    built = build.experiment(settings)
    optimizers = build.optimizers(settings | {'training': {'steps': 100}}, built.method)
    size = options.batch or settings['training']['batch_size']

    key = jax.random.key(0)
    batch = {'image': jax.random.normal(key, (size, *shape)), 'label': jnp.arange(size, dtype=jnp.int32) % max(classes, 1)}
    frozen = {}
    if built.teacher_workdir is not None:
        frozen['teacher'] = jax.jit(built.teacher.init)(key, batch['image'], batch['label'])
    run_state = jax.jit(lambda batch, frozen: state.init_state(built.method, optimizers, 0, batch, frozen))(batch, frozen)
    update = step.make_step(built.method, optimizers, step.ema_decay(1e5, size), seed=0)
    programs = {
        f'{role} step': (jax.jit(lambda s, f, b, role=role: update(s, f, b, (role,))), (run_state, frozen, batch))
        for role in built.method.losses
    }
    programs['sampling'] = (jax.jit(built.method.generate), (run_state.ema, batch['image'], batch['label']))

    peak = matmul_peak()
    rows = {}
    for name, (function, arguments) in programs.items():
        began = time.perf_counter()
        compiled = function.lower(*arguments).compile()
        compile_seconds = time.perf_counter() - began
        jax.block_until_ready(compiled(*arguments))
        seconds = []
        for _ in range(options.repeats):
            began = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            seconds.append(time.perf_counter() - began)
        cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
        cost = cost[0] if isinstance(cost, list) else cost
        flops, median = float(cost.get('flops', float('nan'))), statistics.median(seconds)
        rows[name] = {
            'images_per_second': size / median,
            'milliseconds': 1e3 * median,
            'spread': (max(seconds) - min(seconds)) / median,
            'compile_seconds': compile_seconds,
            'gflop': flops / 1e9,
            'share_of_peak': flops / median / peak,
            'program_mib': (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20 if memory else float('nan'),
        }
    statistics_of_device = jax.devices()[0].memory_stats() or {}
    report = {
        'config': options.config,
        'batch': size,
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        'jax': jax.__version__,
        'matmul_peak_gflops': peak / 1e9,
        'peak_memory_mib': statistics_of_device.get(
            'peak_bytes_in_use', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        / 2**20,
        'programs': rows,
    }
    print(f'{report["config"]}, batch {size}, {report["device"]}, jax {report["jax"]}')
    print(f'matmul peak {peak / 1e9:.0f} GFLOP/s, peak memory {report["peak_memory_mib"]:.0f} MiB')
    print(f'{"":14}{"images/s":>10}{"ms":>10}{"spread":>8}{"compile s":>11}{"GFLOP":>9}{"of peak":>9}{"MiB":>8}')
    for name, row in rows.items():
        print(
            f'{name:14}{row["images_per_second"]:10.0f}{row["milliseconds"]:10.2f}{row["spread"]:8.0%}'
            f'{row["compile_seconds"]:11.1f}{row["gflop"]:9.3f}{row["share_of_peak"]:9.0%}{row["program_mib"]:8.0f}'
        )
    if options.json:
        writer.write_json(options.json, report)
    return 0


if __name__ == '__main__':
    from fdistill.errors import UserError

    try:
        sys.exit(main())
    except UserError as error:
        print(f'bench: {error}', file=sys.stderr)
        sys.exit(2)
