"""Procedural face portraits, for a demo corpus without photos.

Each face is a pure function of (seed, number): a head's relief is shaped, carved and lit, its features are painted into
the skin's colour, hair and glasses are laid over it, and a camera's blur, vignette and noise are applied.
"""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from tqdm import tqdm

from glci_dist.data import draws
from glci_dist.data.demo.canvas import Plane, make_grid, paint, strengths
from glci_dist.data.demo.draw import draw_traits
from glci_dist.data.demo.features import paint_brows, paint_catchlights, paint_eyes, paint_mouth, paint_nostrils
from glci_dist.data.demo.hair import Locks, grow_hair, hair_shadow, paint_beard
from glci_dist.data.demo.head import Head, carve, shade, shape_head, skin_colour
from glci_dist.data.demo.surroundings import background, paint_body, paint_ears, paint_glasses
from glci_dist.data.demo.traits import Scene, Traits
from glci_dist.data.processes import in_processes
from glci_dist.errors import UserError

_OVERSAMPLING = 2
_QUALITY = 92


def render_face(seed: int, number: int, size: int = 96) -> np.ndarray:
    """Face ``number`` of the corpus ``seed``: uint8 ``(size, size, 3)``, RGB; numbers from 0 to 2**64 - 1."""
    generator = draws.generator(seed=seed, purpose="demo face", number=number)
    traits = draw_traits(generator)
    side = _OVERSAMPLING * size
    image = background(traits.scene, side, generator)
    head = shape_head(make_grid(side, traits.pose), traits.shape)
    locks = grow_hair(head, traits.hair, traits.light, generator)
    if locks is not None:
        paint(image, locks.behind, 0.6 * locks.colour)
    paint_body(image, head.grid, traits.shape, traits.skin, traits.light, traits.scene)
    paint_ears(image, head, traits.skin, traits.light)
    paint(image, head.mask, _lit_face(head, traits, locks, generator))
    paint_catchlights(image, head, traits.eyes, traits.light)
    if locks is not None:
        paint(image, locks.before, locks.colour)
    paint_glasses(image, head, traits.eyes, traits.glasses, traits.light)
    return _take_picture(image, traits.scene, generator)


def write_corpus(folder: Path, *, photos: int, seed: int, size: int = 96, processes: int) -> None:
    """Write faces 0 to ``photos`` - 1 as ``face-000000.jpg``, ... of ``size`` x ``size`` px into ``folder``.

    The bytes do not depend on ``processes``. Existing faces are overwritten; UserError for a folder that holds other
    files, and for invalid sizes and counts.
    """
    for name, value, least in (("photos", photos, 1), ("size", size, 16), ("processes", processes, 1)):
        if value < least:
            raise UserError(f"demo faces: {name} is {value} and must be at least {least}")
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"face-{number:06d}.jpg" for number in range(photos)]
    strangers = sorted({path.name for path in folder.iterdir()} - set(names))
    if strangers:
        raise UserError(
            f"demo faces: {folder} holds {strangers[0]}, which is not one of these {photos} faces; give an empty folder"
        )
    write = functools.partial(_write_face, folder, seed, size)
    written = in_processes(write, range(photos), processes=processes)
    for _ in tqdm(written, total=photos, desc="demo faces", unit="face"):
        pass


def _write_face(folder: Path, seed: int, size: int, number: int) -> None:
    encoded = simplejpeg.encode_jpeg(render_face(seed, number, size), quality=_QUALITY)
    (folder / f"face-{number:06d}.jpg").write_bytes(encoded)


def _lit_face(head: Head, traits: Traits, locks: Locks | None, generator: np.random.Generator) -> Plane:
    """The face with its features under the light, ``(3, H, W)``."""
    albedo = skin_colour(head, traits.skin, generator)
    paint_nostrils(albedo, head)
    paint_mouth(albedo, head, traits.mouth)
    paint_beard(albedo, head, traits.beard, generator)
    paint_eyes(albedo, head, traits.eyes, traits.skin)
    paint_brows(albedo, head, traits.eyes, traits.brows, generator)
    light, mirror = shade(carve(head, traits.skin, traits.mouth), head, traits.light)
    face = albedo * light + (traits.skin.gloss * mirror) * strengths(traits.light.key)
    if locks is not None:
        face *= hair_shadow(locks)
    return face


def _take_picture(image: Plane, scene: Scene, generator: np.random.Generator) -> np.ndarray:
    """Reduce, blur, darken the corners, encode as sRGB and add the sensor's noise."""
    side = image.shape[1]
    size = side // _OVERSAMPLING
    photo = np.dstack([cv2.resize(plane, (size, size), interpolation=cv2.INTER_AREA) for plane in image])
    if scene.focus > 0.2:
        photo = cv2.GaussianBlur(photo, (0, 0), scene.focus * size / 96)
    ticks = np.linspace(-1, 1, size, dtype=np.float32)
    corner = ticks[:, None] ** 2 + ticks[None, :] ** 2
    photo *= (1 - 0.5 * scene.vignette * corner)[:, :, None]
    photo = np.clip(photo, 0, None) ** np.float32(1 / 2.2)
    photo += scene.noise * generator.standard_normal(photo.shape, dtype=np.float32)
    return np.clip(photo * 255 + 0.5, 0, 255).astype(np.uint8)
