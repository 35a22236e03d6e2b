"""Searches a sampling grid of few steps for a trained teacher by evolution (AutoDiffusion), scored
by the Frechet distance.

    python experiments/search_grid.py --workdir=runs/demo/teacher --steps=5 --sampler=euler
    [--epochs 10] [--out FILE]

Options of the sampler follow its name as in `fdistill sample`: --sampler=ghvb --order=1.8.

A grid's score is the Frechet distance to the training split, in the classifier's features (of
points: the coordinates), of samples from noise that is the same for all grids. The grid that is
found and the Karras grid of as many steps are measured again with noise and by distances that were
not searched with. If the search is killed and started again, it goes on after the last finished
epoch.
"""

import argparse
import hashlib
import json
import pathlib
import sys

from fdistill.errors import UserError
from fdistill.files import process

DIGITS = 5  # significant digits of a candidate level: the line printed is exactly what was scored
MOST = 10000  # candidates that so many digits tell apart
LEAST = {
    'steps': 1,
    'samples': 2,
    'batch': 1,
    'epochs': 1,
    'population': 1,
    'candidates': 2,
    'seed': 0,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f'{message}; see --help')


def parse(words):
    parser = _Parser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument(
        '--workdir', required=True, help='of a model trained by the method pretrain'
    )
    parser.add_argument(
        '--steps', type=int, required=True, help='levels of the grid before the final 0'
    )
    parser.add_argument('--sampler', metavar='NAME', help="default: the run's")
    parser.add_argument(
        '--samples', type=int, default=2000, help='of a score; default: %(default)s'
    )
    parser.add_argument(
        '--batch', type=int, default=500, help='samples generated at once; default: %(default)s'
    )
    parser.add_argument('--epochs', type=int, default=10, help='default: %(default)s')
    parser.add_argument(
        '--population',
        type=int,
        default=50,
        help='grids scored in an epoch, half of them mutations; default: %(default)s',
    )
    parser.add_argument(
        '--candidates',
        type=int,
        default=201,
        help='Karras levels to choose from; default: %(default)s',
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=1,
        help='of the search and its noise; compared at seed + 1; default: %(default)s',
    )
    parser.add_argument(
        '--out', help='JSON of the search; default: in the workdir, grids/SAMPLER-STEPS.json'
    )
    options, rest = parser.parse_known_args(words)
    for word in rest:
        if not (options.sampler and word.startswith('--') and '=' in word):
            parser.error(f'unknown argument {word}')
    for name, least in LEAST.items():
        value = getattr(options, name)
        if value < least:
            parser.error(f'--{name}={value}: need at least {least}')
    if not options.steps <= options.candidates <= MOST:
        parser.error(f'--candidates={options.candidates}: need --steps={options.steps} to {MOST}')
    return options, rest


def main(words=None):
    options, rest = parse(words)
    # After parsing, so that --help is instant.
    import jax
    import numpy as np

    from fdistill import build, cli
    from fdistill import config as configs
    from fdistill.data.sources import quantise
    from fdistill.diffusion import denoiser as denoisers
    from fdistill.diffusion import noise, samplers, search
    from fdistill.evaluation import evaluate, frechet
    from fdistill.files import disk
    from fdistill.files.progress import Progress

    section = {'name': options.sampler, **cli.keyword_options(rest)} if options.sampler else None
    run = build.from_workdir(options.workdir, sampler=section)
    plain = configs.to_json(run.config)
    if not build.has_solver(plain):
        raise UserError(f'--workdir={options.workdir}: holds a student; give a teacher')
    built, method = build.experiment(plain), plain['method']
    (denoiser, evaluations), sampler = build.guided(built, plain), built.parts['sampler']
    section = _section(method.pop('sampler', 'heun'))
    title = ' '.join(
        [section['name'], *(f'{name}={value}' for name, value in section.items() if name != 'name')]
    )
    own = built.parts['sigmas']
    if len(own) < 3:
        raise UserError(
            f'--workdir={options.workdir}: its grid has one level; two are needed for the range to '
            'search'
        )
    sigma_max, sigma_min = own[0], own[-2]
    candidates = [
        float(f'{level:.{DIGITS}g}')
        for level in noise.karras_grid(options.candidates, sigma_min, sigma_max)[:-1]
    ]
    shares = {
        'population': options.population,
        'parents': -(-options.population // 5),
        'mutations': options.population // 2,
        'crossovers': options.population * 3 // 10,
        'seed': options.seed,
    }
    fresh = configs.call(
        search.start, shares, '--candidates', candidates=candidates, steps=options.steps
    )

    sources = [build.load_data(run.config, split) for split in ('train', 'held_out')]
    train = sources[0]
    against = evaluate.reference(*sources)
    extractor = against.features[0]
    real = against.moments[extractor.name, 'train']
    settings = {
        'model': hashlib.sha256(json.dumps([plain, run.step], sort_keys=True).encode()).hexdigest()[
            :16
        ],
        'sampler': title,
        'samples': options.samples,
        'features': extractor.name,
    }
    default = f'{title.replace(" ", ",")}-{options.steps}.json'
    out = pathlib.Path(options.workdir) / 'grids' / default if options.out is None else options.out
    out = disk.file_for(out, '--out')
    state = _resumed(out, settings, fresh)

    # The grid is an argument, so that one program serves all grids. The keys are for samplers that
    # draw noise.
    @jax.jit
    def solved(params, unit_noise, condition, sigmas):
        denoise = denoisers.bind(denoiser, params, condition)
        key = samplers.keys_of(unit_noise)
        return sampler.solve(denoise, sigmas[0] * unit_noise, sigmas, key)

    def generator(sigmas):
        sigmas = np.asarray(sigmas, np.float32)
        return lambda unit_noise, condition: solved(run.params, unit_noise, condition, sigmas)

    condition, _, _ = evaluate.conditions(train, options.samples)

    def distance(sigmas):
        samples, _ = evaluate.sample(
            generator(sigmas),
            run.shape,
            condition,
            options.samples,
            seed=options.seed,
            batch_size=options.batch,
            progress=False,
        )
        features = extractor.apply(quantise(samples, train.levels))
        moments = frechet.Moments.empty(features.shape[1]).update(features)
        return frechet.frechet_distance(
            moments.mean, moments.covariance, real.mean, real.covariance
        )

    total = options.epochs * options.population
    progress = Progress(total, start=len(state.visited), images=options.samples)
    scored, lowest = len(state.visited), min(state.scores, default=np.inf)

    def score(sigmas):
        nonlocal scored, lowest
        scores = []
        for grid in sigmas:
            scores.append(distance(grid))
            scored, lowest = scored + 1, min(lowest, scores[-1])
            progress.note({'best': lowest})
            progress.update(scored)
        return scores

    def save(state, **result):
        disk.write_json(out, {'settings': settings, 'search': state._asdict(), **result})

    state = search.search(
        score,
        candidates,
        options.steps,
        epochs=options.epochs,
        state=state,
        on_epoch=save,
        **shares,
    )
    progress.close()

    found, _ = search.best(state)
    grids = {'searched': found, 'karras': noise.karras_grid(options.steps, sigma_min, sigma_max)}
    nfe = sampler.evaluations(options.steps) * evaluations
    # Distances that were not searched with show whether the grid suits the data or only the
    # features.
    keys = ('pixel_fd',) if train.images.ndim == 2 else ('fd_train', 'fd_held_out', 'pixel_fd')
    rows = []
    for grid, sigmas in grids.items():
        for noise_name, seed in (('searched', options.seed), ('other', options.seed + 1)):
            row = evaluate.evaluate(
                generator(sigmas),
                *sources,
                nfe=nfe,
                samples=options.samples,
                seed=seed,
                batch_size=options.batch,
                against=against,
            )
            protocol = {key: row['protocol'][key] for key in keys}
            rows.append(
                {
                    'grid': grid,
                    'noise': noise_name,
                    **{key: row[key] for key in keys},
                    'protocol': protocol,
                }
            )
    line = f"grid=dict(name='levels', sigmas={tuple(found[:-1].tolist())})"
    save(state, grid=line, rows=rows)

    print(
        f'\n{title}, {options.steps} steps, {nfe} evaluations; lower is better; '
        f'searched for {rows[0]["protocol"][keys[0]]}'
    )
    print(f'{"grid":10}{"noise":10}' + ''.join(f'{key:>12}' for key in keys))
    for row in rows:
        print(f'{row["grid"]:10}{row["noise"]:10}' + ''.join(f'{row[key]:12.4f}' for key in keys))
    print(f'{len(state.visited)} grids of {len(state.best)} epochs in {out}\n')
    print(line)
    return 0


def _section(value):
    """A section of a config as a dict of its own; a name alone is a section without options."""
    from fdistill import config as configs

    return {'name': value} if isinstance(value, str) else configs.with_tuples(value)


def _resumed(path, settings, fresh):
    """The state in a file, or a fresh one where there is no file; refuses that of another
    search."""
    from fdistill.diffusion import search
    from fdistill.files import disk

    if not path.is_file():
        return fresh
    try:
        values = disk.read_json(path)
        state = search.restore(values['search'])
        old = {**values['settings'], **state.settings}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f'--out={path}: holds no search that can go on ({error}); give another file'
        ) from error
    for name, value in {**settings, **fresh.settings}.items():
        if old.get(name) != value:
            was, now = ('other levels', 'these') if name == 'candidates' else (old.get(name), value)
            raise UserError(
                f'--out={path}: holds a search with {name}={was}, now {now}; give another file'
            )
    return state


if __name__ == '__main__':
    process.prepare()
    try:
        sys.exit(main())
    except UserError as error:
        print(f'search_grid: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            'search_grid: interrupted; the same command goes on after the last finished epoch',
            file=sys.stderr,
        )
        sys.exit(130)
