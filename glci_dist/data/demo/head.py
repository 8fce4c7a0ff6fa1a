"""The head: its outline, its relief, the light on it and the skin over it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glci_dist.data.demo.canvas import Grid, Plane, Window, bump, clouds, inside, linear, paint, ridge, rise, soften
from glci_dist.data.demo.traits import Light, Mouth, Shape, Skin

CENTRE = -0.08
"""v of the eyes' line, where the head is widest."""
SKULL = 0.70
"""Height of the skull above the eyes' line."""
DEPTH = 0.50
"""From the head's widest outline to its front."""


@dataclass(frozen=True)
class Head:
    """A posed head; planes are ``(H, W)``."""

    grid: Grid
    shape: Shape
    mask: Plane
    x: Plane  # face coordinates: u and v as seen by the features, turned with the head
    y: Plane
    ax: Plane  # |x|: most of a face is the same on both sides
    form: Plane  # smooth depth
    mouth: float  # y of the mouth

    def window(self, x: float, y: float, radius: float) -> Window:
        """The pixels round a point of the face."""
        u, v = x + self.grid.pose.yaw * 0.85 * DEPTH, y + self.grid.pose.pitch * 0.85 * DEPTH
        return self.grid.window(u, v, radius)


def shape_head(grid: Grid, shape: Shape) -> Head:
    """The outline (an ellipse above, a tapered superellipse below) and the face's coordinates on it."""
    below = np.maximum(grid.v - CENTRE, 0) * (1 / (shape.chin - CENTRE))
    above = np.minimum(grid.v - CENTRE, 0) * (1 / SKULL)
    width = shape.width * (1 - shape.taper * np.minimum(below, 1) ** 2)
    across = (grid.u / width) ** 2
    along = np.minimum(below, 2) ** 2
    along = above**2 + along * (1 - shape.squareness + shape.squareness * along)
    radius = across + along
    bowl = DEPTH * np.clip(1 - radius, 0, 1)
    x, y = grid.u - grid.pose.yaw * bowl, grid.v - grid.pose.pitch * bowl
    return Head(
        grid=grid,
        shape=shape,
        mask=inside(radius - 1, 0.06),
        x=x,
        y=y,
        ax=np.abs(x),
        # The square keeps the front of the face flatter than a ball's.
        form=DEPTH * np.sqrt(np.clip(1 - radius * (0.5 + 0.5 * radius), 0, 1)),
        mouth=0.19 + shape.nose_length,
    )


def carve(head: Head, skin: Skin, mouth: Mouth) -> Plane:
    """The head's relief, ``(H, W)``: its form and what stands out of it or lies in it."""
    shape, x, y, ax = head.shape, head.x, head.y, head.ax
    tip = shape.nose_length
    climb = rise(y, -0.16, tip + 0.02) * rise(y, tip + 0.09, tip - 0.01)
    relief = head.form + shape.nose_height * climb * ridge(x / (0.052 + 0.03 * rise(y, 0, tip)), 1)
    relief += 0.035 * bump(x, y - tip, 0.055, 0.05)
    relief += 0.035 * bump(ax - shape.nose_width, y - tip - 0.02, 0.036, 0.036)
    relief += 0.055 * shape.cheeks * bump(ax - 0.25, y - 0.13 + 0.05 * mouth.smile, 0.13, 0.12)
    relief -= 0.07 * bump(ax - 0.2, y + 0.09, 0.12, 0.08)
    relief += 0.03 * bump(ax - 0.21, y + 0.075, 0.085, 0.05)
    relief += 0.03 * bump(ax - 0.2, y + 0.2, 0.17, 0.05)
    relief += 0.03 * bump(x, y - head.mouth, 0.15, 0.07) - 0.025 * bump(x, y - head.mouth - 0.095, 0.1, 0.035)
    relief += 0.04 * bump(x, y - shape.chin + 0.1, 0.11, 0.07)
    relief -= 0.012 * bump(x, y - head.mouth + 0.09, 0.02, 0.04)
    return relief - _wrinkles(head, skin.age, mouth.smile)


def _wrinkles(head: Head, age: float, smile: float) -> Plane:
    """Depth of the folds from the nose to the mouth, of the forehead and beside the eyes."""
    fold = head.ax - 0.1 - 0.55 * (head.y - head.shape.nose_length + 0.02)
    reach = rise(head.y, 0.16, 0.22) * rise(head.y, head.mouth + 0.09, head.mouth)
    depth = (0.003 + 0.013 * age + 0.007 * max(smile, 0)) * ridge(fold, 0.032) * reach
    if age < 0.35:
        return depth
    waves = np.cos((head.y + 0.4 * head.x**2) * np.float32(2 * np.pi / 0.062))
    depth += 0.004 * (age - 0.35) * waves * bump(head.x, head.y + 0.34, 0.24, 0.08)
    fan = np.cos((head.y + 0.08) * 5 / np.maximum(head.ax - 0.26, 0.02))
    depth += 0.003 * (age - 0.35) * fan * bump(head.ax - 0.37, head.y + 0.06, 0.05, 0.06)
    bags = ridge(head.y - 0.9 * (head.ax - 0.21) ** 2, 0.02) * bump(head.ax - 0.2, head.y, 0.09, 0.06)
    return depth + 0.012 * (age - 0.3) * bags


def normals(relief: Plane, scale: float) -> tuple[Plane, Plane, Plane]:
    """Unit normals (right, down, out) of a relief whose ``scale`` is the pose's."""
    step = np.float32(-relief.shape[0] * 0.25 / scale)
    right, down = np.zeros_like(relief), np.zeros_like(relief)
    right[:, 1:-1] = (relief[:, 2:] - relief[:, :-2]) * step
    down[1:-1] = (relief[2:] - relief[:-2]) * step
    out = 1 / np.sqrt(1 + right * right + down * down)
    return right * out, down * out, out


def shade(relief: Plane, head: Head, light: Light) -> tuple[Plane, Plane]:
    """Light that reaches the skin ``(3, H, W)``, and the share mirrored towards the camera ``(H, W)``.

    Lambert with a red-leaning wrap (light scatters under skin), soft occlusion and a Blinn highlight.
    """
    right, down, out = normals(relief, head.grid.pose.scale)
    toward = light.direction
    cosine = right * toward[0] + down * toward[1] + out * toward[2]
    hollow = np.clip(1 + 6 * (relief - soften(relief, 0.045)), 0.45, 1.12) * _nose_shadow(head, toward)
    ambient = hollow * (0.75 - 0.3 * down)
    lit = np.empty((3, *relief.shape), dtype=np.float32)
    for channel, wrap in enumerate((0.30, 0.18, 0.12)):
        diffuse = np.clip((cosine + wrap) * (1 / (1 + wrap)), 0, 1)
        lit[channel] = diffuse * hollow * light.key[channel] + ambient * light.ambient[channel]
    half = np.array([toward[0], toward[1], toward[2] + 1], dtype=np.float32)
    half /= np.linalg.norm(half)
    mirror = np.clip(right * half[0] + down * half[1] + out * half[2], 0, 1)
    for _ in range(4):
        mirror = mirror * mirror
    return lit, mirror * hollow


def _nose_shadow(head: Head, toward: tuple[float, float, float]) -> Plane:
    """The nose's cast shadow falls away from the light, below and beside it."""
    x = head.x + 0.09 * toward[0]
    y = head.y - head.shape.nose_length - 0.055 + 0.05 * toward[1]
    wide = head.shape.nose_width * 1.1
    return 1 - 0.3 * bump(x, y, wide, 0.04) - 0.25 * abs(toward[0]) * bump(x, y + 0.09, 0.05, 0.1)


def skin_colour(head: Head, skin: Skin, generator: np.random.Generator) -> Plane:
    """The skin's own colour, ``(3, H, W)``: tone, blush, mottling, freckles, tired eyes."""
    side = head.x.shape[0]
    mottle = 1 + skin.mottle * clouds(generator, side, 24) + 0.04 * clouds(generator, side, 5)
    albedo = linear(skin.colour) * mottle
    red = bump(head.ax - 0.27, head.y - 0.14, 0.13, 0.11) + 0.8 * bump(head.x, head.y - 0.17, 0.07, 0.07)
    albedo[1:] *= 1 - 0.3 * skin.blush * red
    tired = (0.10 + 0.22 * skin.age) * bump(head.ax - 0.2, head.y - 0.0, 0.1, 0.05)
    albedo *= 1 - tired
    if skin.freckles:
        specks = rise(clouds(generator, side, 64), 1.3, 2.2)
        coverage = 0.5 * skin.freckles * specks * bump(head.x, head.y - 0.09, 0.36, 0.15)
        paint(albedo, coverage, linear(skin.colour) * linear((200, 150, 120)))
    return albedo
