"""What is behind, below and on the face: background, neck, clothes, ears and glasses."""

from __future__ import annotations

import cv2
import numpy as np

from glci_dist.data.demo.canvas import (
    Grid,
    Plane,
    bump,
    clouds,
    darken,
    inside,
    linear,
    norm,
    paint,
    ridge,
    rise,
    strengths,
)
from glci_dist.data.demo.features import EYES
from glci_dist.data.demo.head import Head
from glci_dist.data.demo.traits import Eyes, Glasses, Light, Scene, Shape, Skin

_COARSE = 48
"""Side of the grid the background is painted on: enlarged, it lies out of focus."""


def background(scene: Scene, side: int, generator: np.random.Generator) -> Plane:
    """A blurred wall, garden or room, ``(3, side, side)``."""
    ticks = np.linspace(-1, 1, _COARSE, dtype=np.float32)
    x, y = np.meshgrid(ticks, ticks)
    angle = generator.uniform(0, 2 * np.pi)
    slope = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    image = linear(scene.wall) * np.ones_like(x)
    paint(image, (0.2 if scene.pattern == "plain" else 0.85) * rise(slope, -1.2, 1.2), linear(scene.other))
    if scene.pattern == "bokeh":
        _paint_discs(image, x, y, generator)
    elif scene.pattern == "bricks":
        row = np.floor(y * 5)
        seam = np.minimum(np.abs((y * 5) % 1 - 0.5), np.abs((x * 2.5 + 0.5 * (row % 2)) % 1 - 0.5) * 2)
        darken(image, 0.3 * rise(seam, 0.16, 0.04))
    elif scene.pattern == "stripes":
        darken(image, 0.35 * rise(np.sin(x * 9 + angle), -0.4, 0.4))
    elif scene.pattern == "garden":
        leaves = rise(clouds(generator, _COARSE, 9) + 0.5 * clouds(generator, _COARSE, 20), -0.5, 1.6)
        paint(image, leaves, linear((150, 190, 110)))
        darken(image, 0.5 * rise(clouds(generator, _COARSE, 7), 0, 1.5))
    image *= 1 + 0.05 * clouds(generator, _COARSE, 6)
    blur = float(generator.uniform(0.4, 1.4))
    planes = [cv2.resize(cv2.GaussianBlur(plane, (0, 0), blur), (side, side)) for plane in image]
    return np.stack(planes)


def _paint_discs(image: Plane, x: Plane, y: Plane, generator: np.random.Generator) -> None:
    """Lights out of focus."""
    for _ in range(int(generator.integers(6, 14))):
        across, down = generator.uniform(-1, 1, 2)
        radius, strength = generator.uniform(0.06, 0.24), generator.uniform(0.15, 0.6)
        tint = linear(tuple(generator.uniform(120, 255, 3)))
        disc = inside(norm(x - np.float32(across), y - np.float32(down)) - radius, 0.08)
        paint(image, np.float32(strength) * disc, tint)


def paint_body(image: Plane, grid: Grid, shape: Shape, skin: Skin, light: Light, scene: Scene) -> None:
    """Neck, shoulders and collar, in place; the chin's shadow lies on the neck."""
    window = grid.below(0.35)
    u, v, image = grid.u[window], grid.v[window], image[window]
    key, ambient = strengths(light.key), strengths(light.ambient)
    neck = 0.57 * shape.width
    turn = np.clip(u * (1 / neck), -1, 1)
    lit = np.clip(turn * light.direction[0] + 0.85 * np.sqrt(1 - 0.9 * turn * turn), 0.1, 1)
    under = 0.28 + 0.72 * rise(v - 0.5 * u * u, shape.chin + 0.04, shape.chin + 0.34)
    widening = neck + 0.5 * np.maximum(v - shape.chin - 0.12, 0)
    au = np.abs(u)
    paint(image, inside(au - widening), linear(skin.colour) * (lit * under * key + 0.75 * under * ambient))
    shoulders = v - (shape.chin + 0.17 + 0.16 * rise(au, 0.25, 1.1) + 0.16 * rise(au, 0.34, 0.1))
    if scene.collar == "vee":
        shoulders -= 0.45 * rise(au, 0.3, 0.0)
    folds = 1 + 0.14 * np.sin(7 * u + 3 * v) * rise(au, 0.2, 0.6)
    side = np.clip(0.72 + 0.4 * u * light.direction[0] - 0.15 * au, 0.2, 1) * folds
    cloth = linear(scene.clothes) * (side * key + 0.8 * ambient)
    if scene.collar == "shirt":
        paint(cloth, inside(np.abs(au - 0.33 + 0.3 * (v - shape.chin - 0.17)) - 0.07), 0.9 * linear(scene.trim))
    coverage = inside(-shoulders)
    darken(image, 0.35 * ridge(np.maximum(-shoulders, 0), 0.06) * rise(shoulders, 0.02, -0.02))
    paint(image, coverage, cloth * rise(shoulders, -0.12, 0.05))


def paint_ears(image: Plane, head: Head, skin: Skin, light: Light) -> None:
    """Both ears, in place, before the head covers their roots."""
    key, ambient = strengths(light.key), strengths(light.ambient)
    for side in (-1, 1):
        away = side * head.grid.pose.yaw
        u0, v0 = side * (head.shape.width + 0.012 - 0.12 * away), 0.02
        window = head.grid.window(u0, v0, 0.25)
        x = (side * (head.grid.u[window] - u0)) * (1 / (0.062 * head.shape.ears))
        y = (head.grid.v[window] - v0) * (1 / (0.15 * head.shape.ears))
        x = x - 0.3 * y * y + 0.35 * y
        radius = norm(x, y)
        lit = np.clip(0.62 + 0.4 * side * light.direction[0] * x - 0.15 * y, 0.15, 1)
        hollow = 1 - 0.45 * bump(x + 0.15, y + 0.1, 0.45, 0.5) + 0.1 * ridge(radius - 0.8, 0.15)
        flesh = linear(skin.colour) * linear((255, 236, 230)) * (lit * hollow * key + 0.7 * hollow * ambient)
        paint(image[window], inside(radius - 1, 0.15), flesh)


def paint_glasses(image: Plane, head: Head, eyes: Eyes, glasses: Glasses, light: Light) -> None:
    """Lenses, frame, bridge and temples, in place, over the lit face."""
    if glasses.style == "none":
        return
    power = 2 if glasses.style == "round" else 4
    height = glasses.height * (1.1 if glasses.style == "round" else 0.92)
    width = glasses.width * (0.88 if glasses.style == "round" else 1)
    y = head.y - EYES - 0.02
    reach = ((head.ax - eyes.spacing) * (1 / width)) ** power + (y * (1 / height)) ** power
    distance = np.sqrt(reach) - 1 if power == 2 else np.sqrt(np.sqrt(reach)) - 1
    darken(image, 0.22 * ridge(np.roll(distance, -head.x.shape[0] // 64, axis=0), 0.1) * head.mask)
    dark = 0.86 if glasses.style == "sun" else 0.05
    lens = inside(distance, 0.15)
    darken(image, dark * lens)
    glare = rise(np.sin((head.x - 0.7 * head.y) * 13 + 4 * light.direction[0]), 0.55, 0.95)
    paint(image, (0.16 if dark > 0.5 else 0.10) * lens * glare, 0.9 * strengths(light.key))
    rim = inside(np.abs(distance) - glasses.thickness, 0.14)
    bridge = inside(np.abs(y + 0.03 - 0.9 * head.x**2) - 0.013) * inside(head.ax - eyes.spacing + width * 0.98)
    outward = inside(eyes.spacing + width - head.ax)
    temple = inside(np.abs(y + 0.03) - 0.016) * outward * inside(head.ax - head.shape.width - 0.03)
    shine = np.clip(0.7 - 3.5 * y, 0.3, 1.4)
    coverage = np.maximum(np.maximum(rim, bridge), temple)
    paint(image, coverage, linear(glasses.frame) * shine * strengths(light.key) + 0.01)
