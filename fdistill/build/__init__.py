"""From a config to objects, and from a workdir to a model: the only reader of configs.

trained_on < sections < latents < models < published < teachers, rewarding, encoders < parts <
levels < experiment < settings < run < measure, check_teacher, pairs < train < together; shapes <
plan; here is the face of all.
"""

from fdistill.build.draw import batch_key, sample
from fdistill.build.evaluators import reference
from fdistill.build.experiment import Experiment, experiment, optimizers
from fdistill.build.latents import encode, of_images, vae_of
from fdistill.build.loading import (
    folder_of,
    from_weights,
    from_workdir,
    guided,
    has_solver,
    is_flow_map,
    opened,
    solve,
)
from fdistill.build.measure import evaluate
from fdistill.build.pairs import check_pairs, digest_pairs, make_pairs
from fdistill.build.plan import page, plan
from fdistill.build.published import as_params, convert, save_teacher, with_names
from fdistill.build.real import make_statistics
from fdistill.build.resume import digest
from fdistill.build.rewarding import read_reward
from fdistill.build.run import Run
from fdistill.build.sections import load_data, real, replaced, resolve
from fdistill.build.settings import common, comparable, complete, continuous, override
from fdistill.build.shapes import Foreseen, blank, foresee
from fdistill.build.superposed import superposed
from fdistill.build.together import train_lanes
from fdistill.build.train import train

__all__ = [
    'Experiment',
    'Foreseen',
    'Run',
    'as_params',
    'batch_key',
    'blank',
    'check_pairs',
    'common',
    'comparable',
    'complete',
    'continuous',
    'convert',
    'digest',
    'digest_pairs',
    'encode',
    'evaluate',
    'experiment',
    'folder_of',
    'foresee',
    'from_weights',
    'from_workdir',
    'guided',
    'has_solver',
    'is_flow_map',
    'load_data',
    'make_pairs',
    'make_statistics',
    'of_images',
    'opened',
    'optimizers',
    'override',
    'page',
    'plan',
    'read_reward',
    'real',
    'reference',
    'replaced',
    'resolve',
    'sample',
    'save_teacher',
    'solve',
    'superposed',
    'train',
    'train_lanes',
    'vae_of',
    'with_names',
]
