"""Hair and beards: where they grow, and how their strands catch the light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from glci_dist.data.demo.canvas import Plane, bump, clouds, inside, linear, norm, paint, rise, soften, strengths
from glci_dist.data.demo.head import CENTRE, SKULL, Head
from glci_dist.data.demo.traits import Beard, Hair, Light

_HANGING = ("long", "bob")
_SHORN = ("buzz", "horseshoe")
_MIDDLE = CENTRE - 0.12
"""v of the hair's widest line."""


@dataclass(frozen=True)
class Cap:
    """The ellipse that the hair's outside follows above ``_MIDDLE``, in head units."""

    width: float
    height: float


@dataclass(frozen=True)
class Locks:
    """Hair ready to be laid behind the head and over it; coverages ``(H, W)``, colour ``(3, H, W)``."""

    behind: Plane
    before: Plane
    colour: Plane


def grow_hair(head: Head, hair: Hair, light: Light, generator: np.random.Generator) -> Locks | None:
    """The hair of a head, lit; None on a bald one."""
    strands = _strands(head, hair, generator)
    if hair.style == "bald":
        return None
    volume = 0.012 if hair.style in _SHORN else hair.volume
    upwards = 1.3 if hair.style == "quiff" else 1.0
    cap = Cap(width=head.shape.width + 0.75 * volume, height=SKULL - 0.12 + upwards * volume)
    outer = inside(_outline(head, hair, cap, strands), 0.04)
    before = outer * _hairline(head, hair, strands)
    colour = _lit(head, hair, cap, light, strands)
    if hair.style in _SHORN:
        return Locks(behind=np.zeros_like(outer), before=0.8 * before, colour=colour)
    behind = outer * rise(head.grid.v + 0.05 * strands, hair.length + 0.12, hair.length)
    if hair.style == "bun":
        knot = norm(head.grid.u, 1.15 * (head.grid.v - _MIDDLE + cap.height + 0.04)) - 0.2
        behind = np.maximum(behind, inside(knot + 0.01 * strands, 0.02))
    return Locks(behind=behind, before=before, colour=colour)


def _outline(head: Head, hair: Hair, cap: Cap, strands: Plane) -> Plane:
    """Negative where hair may be: an ellipse above, which hangs, narrows or closes below."""
    u, v = head.grid.u, head.grid.v - _MIDDLE
    above, below = np.minimum(v, 0) * (1 / cap.height), np.maximum(v, 0)
    if hair.style == "curly":
        return np.sqrt((u / cap.width) ** 2 + above**2 + (2 * below) ** 2) - 1 + 0.04 * strands
    flare = 0.12 if hair.style in _HANGING else -0.1
    return norm(u * (1 / cap.width), above) - 1 - flare * below + 0.018 * strands


def _strands(head: Head, hair: Hair, generator: np.random.Generator) -> Plane:
    """Noise drawn out along the meridians that hair falls by; curls are drawn out nowhere."""
    side = head.x.shape[0]
    texture = generator.standard_normal((8, 256), dtype=np.float32)
    texture += 1.3 * cv2.resize(generator.standard_normal((8, 40), dtype=np.float32), (256, 8))
    if hair.style in ("curly", "buzz", "bald"):
        return 0.9 * clouds(generator, side, 40) + 0.6 * clouds(generator, side, 16)
    u, v = head.grid.u, head.grid.v
    fall = np.sqrt(np.clip(1 - (np.minimum(v - CENTRE, 0) / (SKULL + 0.25)) ** 2, 0.05, 1))
    across = (u - hair.parting) / fall
    across += hair.sweep * 0.25 * np.minimum(v - CENTRE, 0)
    across += hair.wave * np.sin(v * 11 + 3 * hair.parting + 2 * np.sign(u))
    columns = across * 62 + 128
    rows = np.clip(v + 1.2, 0, 2.4) * (7 / 2.4)
    return 0.62 * cv2.remap(texture, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _hairline(head: Head, hair: Hair, strands: Plane) -> Plane:
    """Coverage above the line that runs over the forehead and down the temples."""
    x, share = head.x, np.minimum(head.ax / head.shape.width, 1.5)
    if hair.style == "horseshoe":
        return rise(share, 0.8, 0.92) * inside(head.y - 0.05 + 0.02 * strands, 0.05) * rise(head.y, -0.5, -0.3)
    steep = share * share
    steep = steep * steep * steep
    line = hair.line + 0.5 * steep
    if hair.style == "fringe":
        line = -0.27 + 0.03 * strands + 0.55 * steep * share
    elif hair.style in _HANGING:
        # The hair parts and falls to both sides of the forehead.
        line += 0.5 * np.abs(x - hair.parting) - 0.1 + 0.1 * steep
    elif hair.style in ("short", "quiff"):
        line += 0.35 * hair.sweep * x - 0.05 * bump(head.ax - 0.24, x * 0, 0.1, 1)
    ends = hair.length if hair.style in _HANGING else min(hair.length, 0.06)
    return inside(head.y - np.minimum(line, ends + 0.06 * strands) + 0.012 * strands, 0.045)


def _lit(head: Head, hair: Hair, cap: Cap, light: Light, strands: Plane) -> Plane:
    """The hair's colour under the light: a ball's shading, strands, and a band of shine across them."""
    right = np.clip(head.grid.u * (0.92 / cap.width), -0.95, 0.95)
    down = np.clip((head.grid.v - _MIDDLE) * (0.9 / cap.height), -0.95, 0.55)
    out = np.sqrt(np.clip(1 - right * right - down * down, 0.04, 1))
    toward = light.direction
    diffuse = np.clip((right * toward[0] + down * toward[1] + out * toward[2] + 0.2) / 1.2, 0, 1)
    texture = np.clip(1 + (0.28 if hair.style == "curly" else 0.42) * strands, 0.25, 2.2)
    reach = down - 0.55 * toward[1] + 0.28 + 0.1 * strands
    band = np.exp(-((reach * 4.5) ** 2)) * diffuse * np.clip(0.6 + 0.6 * strands, 0, 2)
    if hair.style == "curly" or hair.style in _SHORN:
        band = 0.25 * band
    key, ambient = strengths(light.key), strengths(light.ambient)
    own = linear(hair.colour)
    lit = (diffuse * texture) * key + (0.7 * texture) * ambient
    return own * lit + (0.10 * band) * (key * (0.35 + 0.65 * np.sqrt(own)))


def hair_shadow(locks: Locks) -> Plane:
    """How much light the hair takes from the skin beside it, ``(H, W)`` in [0, 1]."""
    spread = soften(locks.before, 0.03)
    lower = np.roll(spread, spread.shape[0] // 40, axis=0)
    return 1 - 0.5 * lower


def paint_beard(albedo: Plane, head: Head, beard: Beard, generator: np.random.Generator) -> None:
    """The beard, in place, into the skin's colour."""
    if beard.style == "none":
        return
    noise = clouds(generator, head.x.shape[0], 72)
    coverage = _beard_area(head, beard) * np.clip(1.05 + 0.12 * noise, 0, 1)
    if beard.style == "stubble":
        coverage = 0.42 * coverage
    paint(albedo, coverage, linear(beard.colour) * np.clip(1 + 0.35 * noise, 0.2, 2))


def _beard_area(head: Head, beard: Beard) -> Plane:
    ax, y = head.ax, head.y - head.mouth
    lips = rise(norm(head.x * (1 / 0.15), (y - 0.012) * (1 / 0.055)), 0.8, 1.2)
    moustache = inside(norm(head.x * (1 / 0.21), (y + 0.075 - 0.9 * ax * ax) * (1 / 0.04)) - 1, 0.4)
    if beard.style == "moustache":
        return moustache * lips
    if beard.style == "goatee":
        chin = inside(norm(head.x * (1 / 0.15), (y - 0.13) * (1 / 0.12)) - 1, 0.3)
        return np.maximum(moustache, chin) * lips
    edge = y - 0.03 + 0.95 * np.maximum(ax - 0.16, 0)
    jaw = rise(edge, -0.05, 0.06) * rise(head.y, -0.12, 0.02)
    return np.maximum(moustache, jaw) * lips
