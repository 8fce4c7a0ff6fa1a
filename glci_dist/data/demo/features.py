"""Eyes, brows, nostrils and mouth, painted into the skin's colour before it is lit."""

from __future__ import annotations

import numpy as np

from glci_dist.data.demo.canvas import Plane, bump, clouds, darken, inside, linear, norm, paint, ridge, rise
from glci_dist.data.demo.head import Head
from glci_dist.data.demo.traits import Brows, Eyes, Light, Mouth, Skin

EYES = -0.08
"""y of the eyes."""


def paint_eyes(albedo: Plane, head: Head, eyes: Eyes, skin: Skin) -> None:
    """Both eyes, in place; ``albedo`` is ``(3, H, W)``."""
    for side in (-1, 1):
        window = head.window(side * eyes.spacing, EYES, 2.2 * eyes.width)
        part = albedo[window]
        p = (side * head.x[window] - eyes.spacing) * (1 / eyes.width)  # outward
        q = (head.y[window] - EYES) * (1 / eyes.width) - eyes.tilt * p
        _paint_eye(part, p, q, side, eyes, skin)


def _paint_eye(part: Plane, p: Plane, q: Plane, side: int, eyes: Eyes, skin: Skin) -> None:
    bow = 1 - p * p
    upper, lower = -eyes.opening * bow * (1 - 0.12 * p), 0.62 * eyes.opening * bow
    above = upper - q
    darken(part, 0.28 * ridge(above - 0.26 - 0.1 * bow, 0.13) * rise(np.abs(p), 1.25, 0.7))
    darken(part, 0.5 * eyes.shadow * rise(above, 0.75, 0.1) * rise(above, -0.1, 0.1) * rise(np.abs(p), 1.5, 0.8))
    darken(part, 0.15 * ridge(q - lower - 0.28, 0.1) * rise(np.abs(p), 1.1, 0.6) * (0.5 + skin.age))
    opening = inside(above, 0.16) * inside(q - lower, 0.16)
    paint(part, opening, _eyeball(p, q, above, side, eyes))
    lid = ridge(above - 0.03, 0.09 + 0.07 * eyes.lashes) * rise(np.abs(p), 1.3, 0.95)
    paint(part, np.clip(lid * (0.55 + 0.5 * eyes.lashes), 0, 1), linear((26, 18, 16)))
    paint(part, 0.35 * eyes.lashes * ridge(q - lower, 0.07) * rise(np.abs(p), 1.05, 0.9), linear((40, 26, 22)))


def _eyeball(p: Plane, q: Plane, above: Plane, side: int, eyes: Eyes) -> Plane:
    """The white, the iris and the pupil under the lid's shadow."""
    white = linear(eyes.white) * (1 - 0.35 * p * p)
    radius = norm(p - side * eyes.gaze[0], q - eyes.gaze[1])
    iris = linear(eyes.iris) * (1.15 - 0.75 * rise(radius, 0.28, 0.5) + 0.5 * q)
    paint(white, inside(radius - 0.52, 0.14), iris)
    paint(white, inside(radius - 0.24, 0.14), linear((8, 6, 6)))
    return white * (0.4 + 0.6 * rise(-above, 0, 0.5))


def paint_catchlights(image: Plane, head: Head, eyes: Eyes, light: Light) -> None:
    """The light's mirror image on each eye, in place, over the lit face."""
    for side in (-1, 1):
        x = side * eyes.spacing + eyes.width * (eyes.gaze[0] + 0.25 * light.direction[0])
        y = EYES + eyes.width * (eyes.gaze[1] - 0.13)
        window = head.window(x, y, 0.05)
        spot = norm(head.x[window] - x, head.y[window] - y) - 0.07 * eyes.width
        paint(image[window], 0.6 * inside(spot, 0.015), linear((250, 250, 250)))


def paint_brows(albedo: Plane, head: Head, eyes: Eyes, brows: Brows, generator: np.random.Generator) -> None:
    """Both brows, in place: an arch that thins outwards, of short slanting hairs."""
    hairs = clouds(generator, head.x.shape[0], 90)
    for side in (-1, 1):
        window = head.window(side * eyes.spacing, EYES - brows.height, 0.2)
        p = (side * head.x[window] - eyes.spacing) * (1 / 0.145)
        arch = EYES - brows.height - brows.arch * (1 - (p - 0.25) ** 2) + 0.05 * brows.tilt * p
        thickness = brows.thickness * (1.05 - 0.35 * p) * (1 + 0.12 * hairs[window])
        coverage = inside(np.abs(head.y[window] - arch) - thickness, 0.028) * rise(np.abs(p), 1.06, 0.8)
        colour = linear(brows.colour) * (1 + 0.25 * hairs[window])
        paint(albedo[window], np.clip(coverage * 0.85, 0, 1), colour)


def paint_nostrils(albedo: Plane, head: Head) -> None:
    """The nostrils and the creases round the nose's wings, in place."""
    shape = head.shape
    window = head.window(0, shape.nose_length, 0.2)
    part, ax, y = albedo[window], head.ax[window], head.y[window] - shape.nose_length
    darken(part, 0.7 * bump(ax - 0.5 * shape.nose_width, y - 0.048 - 0.15 * (ax - 0.04), 0.024, 0.013))
    wing = norm(ax - shape.nose_width, (y - 0.02) * 0.9)
    darken(part, 0.32 * ridge(wing - 0.042, 0.012) * rise(ax, shape.nose_width, shape.nose_width + 0.03))


def paint_mouth(albedo: Plane, head: Head, mouth: Mouth) -> None:
    """Lips, the line between them and, in an open mouth, the teeth; in place."""
    window = head.window(0, head.mouth, 0.3)
    part = albedo[window]
    p = head.x[window] * (1 / mouth.width)
    q = (head.y[window] - head.mouth) * (1 / mouth.width)
    bow = np.maximum(1 - p * p, -0.5)
    line = -0.2 * mouth.smile * p * p + 0.06 * mouth.smile
    gap = line + mouth.opening * bow
    top = line - 0.22 * mouth.fullness * bow * (1 - 0.3 * ridge(p, 0.16) + 0.25 * ridge(np.abs(p) - 0.25, 0.2))
    bottom = gap + 0.36 * mouth.fullness * bow * (0.75 + 0.25 * bow)
    paint(part, inside(line - q, 0.07) * inside(q - gap, 0.07), _teeth(mouth, p, q, line, gap))
    lips = linear(mouth.lips)
    upper = inside(top - q, 0.09) * inside(q - line, 0.07)
    paint(part, mouth.paint * upper, 0.72 * lips)
    lower = inside(gap - q, 0.07) * inside(q - bottom, 0.12)
    paint(part, mouth.paint * lower, lips * (1.02 + 0.35 * bump(p, q - 0.5 * (gap + bottom), 0.5, 0.09)))
    if not mouth.opening:
        darken(part, 0.7 * ridge(q - line, 0.05) * rise(np.abs(p), 1.08, 0.9))
    darken(part, 0.4 * bump(np.abs(p) - 1.0, q - line, 0.1, 0.09))


def _teeth(mouth: Mouth, p: Plane, q: Plane, line: Plane, gap: Plane) -> Plane:
    """Upper teeth that darken to the corners, over the dark of the mouth."""
    seams = 1 - 0.16 * np.cos(p * 24) ** 8
    teeth = linear(mouth.teeth) * (np.clip(1.05 - 0.75 * p * p, 0.1, 1) * seams)
    depth = (q - line) / np.maximum(gap - line, 0.02)
    paint(teeth, rise(depth, 0.72, 0.95), linear((96, 36, 36)))
    return teeth
