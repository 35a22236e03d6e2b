"""Pictures of samples as arrays uint8 [H, W, 3], and as PNG."""

import io
import math

import numpy as np
from PIL import Image

from fdistill.files import disk


def png(array: np.ndarray, optimize: bool = False) -> bytes:
    """A picture, uint8 [H, W, 3] or [H, W], as the bytes of a PNG file; `optimize`d, it is smaller
    and takes longer."""
    data = io.BytesIO()
    Image.fromarray(array).save(data, 'PNG', optimize=optimize)
    return data.getvalue()


def write_png(path: disk.Path, array: np.ndarray) -> None:
    """Writes a picture, uint8 [H, W, 3] or [H, W], to a file as `disk.write` does."""
    disk.write_bytes(path, png(array))


def image_grid(images: np.ndarray, columns: int | None = None, tile: int = 64) -> np.ndarray:
    """Sets images side by side, row by row.

    Args:
        images: float [N, H, W, 1 or 3] in [-1, 1], cut to that range; a pixel that is not finite
          becomes magenta.
        columns: images a row; default: about as many as rows.
        tile: an image smaller than this many pixels is enlarged by a whole factor, to at least
          this.
    Returns:
        uint8 [height, width, 3].
    Raises:
        ValueError: images of another shape, or none.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise ValueError(
            f'images have shape {images.shape}; a grid needs [N, H, W, 1 or 3] with N > 0'
        )
    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    finite = np.isfinite(images).all(axis=-1)
    pixels = np.round(
        np.where(finite[..., None], np.clip(images, -1, 1), 0) * 127.5 + 127.5
    ).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (count, height, width, 3)).copy()
    pixels[~finite] = (255, 0, 255)
    factor = max(1, math.ceil(tile / min(height, width)))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    pixels = np.pad(pixels, [(0, rows * columns - count), (1, 1), (1, 1), (0, 0)])
    grid = pixels.reshape(rows, columns, *pixels.shape[1:])
    return grid.transpose(0, 2, 1, 3, 4).reshape(
        rows * pixels.shape[1], columns * pixels.shape[2], 3
    )


def scatter(
    points: np.ndarray,
    reference: np.ndarray | None = None,
    limit: float | None = None,
    size: int = 384,
    dot: int = 3,
) -> np.ndarray:
    """A picture of points in the plane, darker where there are more.

    Args:
        points: [N, 2], in blue; points that are not finite or not within the limit are left out.
        reference: [M, 2], in grey below them, or None.
        limit: half the side of the square shown, centred at 0; default: what holds the reference,
          else the points.
        size: side of the picture in pixels, rounded down to whole dots.
        dot: side of a dot in pixels.
    Returns:
        uint8 [size, size, 3], x to the right and y up.
    """
    layers = [] if reference is None else [(np.asarray(reference), (0.7, 0.7, 0.7))]
    layers.append((np.asarray(points), (0.1, 0.3, 0.85)))
    if limit is None:
        shown = layers[0][0]
        limit = 1.1 * float(np.abs(shown[np.isfinite(shown)]).max(initial=1e-3))
    cells = size // dot
    picture = np.ones((cells, cells, 3))
    for layer, colour in layers:
        layer = layer[np.isfinite(layer).all(axis=-1)]
        counts, _, _ = np.histogram2d(layer[:, 1], layer[:, 0], cells, [(-limit, limit)] * 2)
        # One point is seen; some ten times the mean of a filled picture is full colour.
        shade = np.where(
            counts > 0,
            0.25 + 0.75 * (1 - np.exp(-counts * cells**2 / (10 * max(len(layer), 1)))),
            0,
        )
        picture += shade[::-1, :, None] * (np.array(colour) - picture)
    return np.round(picture * 255).astype(np.uint8).repeat(dot, axis=0).repeat(dot, axis=1)
