"""What the first seed of each group makes of one fixed noise, as pictures, beside the training
images that are nearest to it, by which copies are seen."""

import jax
import jax.numpy as jnp
import numpy as np

from fdistill import build
from fdistill.data import sources
from fdistill.diffusion import oracle
from fdistill.errors import UserError
from fdistill.evaluation import metrics
from fdistill.files import disk, pictures
from fdistill.report import plots

SEED = 0
POINTS = 4000
IMAGES = (25, 16, 9, 4, 1)
BUDGET = 2_000_000  # bytes of all images as they are, before PNG makes them fewer


def draw(folder: disk.Path, groups: int) -> tuple[bytes, str]:
    """A picture of samples, from the same noise and labels for all runs of a shape of data; of
    images, with the nearest training images at the same places to the right of it.

    Args:
      folder: of a run with a checkpoint.
      groups: number of pictures that share BUDGET.

    Returns:
      (PNG, bytes; what it shows, in words).

    Raises:
      UserError: no checkpoint, or data that no picture shows.
    """
    run = build.from_workdir(folder)
    image = len(run.shape) == 3
    if not image and run.shape[0] > 2:
        raise UserError(f'{folder}: points in {run.shape[0]} dimensions are not drawn')
    n = POINTS
    if image:
        n = next((n for n in IMAGES if 2 * n * groups * np.prod(run.shape) <= BUDGET), 1)
    noise, condition = run.start(jax.random.key(SEED), n)
    samples = np.asarray(run.sample(noise, condition), np.float32)
    if image:
        return _beside_nearest(samples, run.config)
    train = build.load_data(build.real(run.config), 'train')
    real = train.images[:POINTS]
    if run.shape[0] == 2:
        return pictures.png(
            pictures.scatter(samples, reference=real)
        ), f'{n} samples over as many points of the data (grey)'
    limit = 1.25 * float(np.abs(real).max())
    x = np.linspace(-limit, limit, 400)
    density = None
    if train.name in sources.MIXTURES:
        mixture = oracle.mixture(*sources.mixture_parameters(train.name))
        density = np.exp(np.asarray(mixture.log_prob(jnp.asarray(x[:, None], jnp.float32))))
    return plots.histogram(samples[:, 0], x, density, (-limit, limit)), f'{n} samples'


def _beside_nearest(samples, config):
    """(PNG, words) of images and of the training images that are nearest to them."""
    grid, said = pictures.image_grid(samples, tile=1), f'{len(samples)} samples'
    try:
        train = build.load_data(build.of_images(config), 'train')
    except UserError as error:  # A report can be made where the data are not.
        return pictures.png(grid), f'{said}, without their nearest training images: {error}'
    found = metrics.nearest(samples, train.images, train.levels)
    real = pictures.image_grid(sources.to_float(train.images[found], train.levels), tile=1)
    gap = np.full((len(grid), max(4, samples.shape[2] // 4), 3), 255, np.uint8)
    return (
        pictures.png(np.concatenate([grid, gap, real], axis=1)),
        f'{said} (left) and the training image nearest to each (right)',
    )
