"""What every part of a portrait is painted with: grids, soft edges, bumps and noise.

Images are planar, ``(3, H, W)`` float32 in linear light: numpy's inner loops then run along whole rows,
and shading, blending and the final reduction are sums of light.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import cv2
import numpy as np
import numpy.typing as npt

from glci_dist.data.demo.traits import Colour, Pose

Plane = npt.NDArray[np.floating]
Window = tuple[EllipsisType, slice, slice]
"""Rows and columns of a plane, or of each plane of an image."""


@dataclass(frozen=True)
class Grid:
    """Head coordinates of each pixel, ``(H, W)``: u to the right, v down, 1 is half the photo at scale 1."""

    u: Plane
    v: Plane
    pose: Pose

    def below(self, v: float) -> Window:
        """The rows in which any point lies below ``v``."""
        low = np.flatnonzero((self.v[:, 0] > v) | (self.v[:, -1] > v))
        return ..., slice(int(low[0]) if low.size else self.v.shape[0], None), slice(None)

    def window(self, u: float, v: float, radius: float) -> Window:
        """Rows and columns of the square of half side ``radius`` round the point (u, v)."""
        side = self.u.shape[0]
        cos, sin = np.cos(self.pose.roll), np.sin(self.pose.roll)
        column = (self.pose.scale * (cos * u - sin * v) + self.pose.right + 1) * side / 2
        row = (self.pose.scale * (sin * u + cos * v) + self.pose.down + 1) * side / 2
        reach = self.pose.scale * radius * side / 2
        return ..., _span(row, reach, side), _span(column, reach, side)


def _span(centre: float, reach: float, side: int) -> slice:
    return slice(int(np.clip(centre - reach, 0, side)), int(np.clip(centre + reach + 1, 0, side)))


def make_grid(side: int, pose: Pose) -> Grid:
    """The grid of a photo of ``side`` x ``side`` pixels, moved, scaled and rolled as the pose says."""
    ticks = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
    x = (ticks[None, :] - pose.right) / pose.scale
    y = (ticks[:, None] - pose.down) / pose.scale
    cos, sin = np.float32(np.cos(pose.roll)), np.float32(np.sin(pose.roll))
    return Grid(u=cos * x + sin * y, v=cos * y - sin * x, pose=pose)


def linear(colour: Colour) -> Plane:
    """An sRGB colour (0-255) as linear light in [0, 1], shaped ``(3, 1, 1)`` to paint planes with."""
    light = (np.asarray(colour, dtype=np.float32) / 255) ** np.float32(2.2)
    return light.reshape(3, 1, 1)


def strengths(light: Colour) -> Plane:
    """A light's three strengths, shaped ``(3, 1, 1)`` to multiply planes."""
    return np.asarray(light, dtype=np.float32).reshape(3, 1, 1)


def paint(image: Plane, coverage: Plane, colour: Plane) -> None:
    """Lay ``colour`` over ``image`` in place, where ``coverage`` (in [0, 1]) says."""
    for plane, own in zip(image, np.broadcast_to(colour, image.shape), strict=True):
        plane += coverage * (own - plane)


def darken(image: Plane, amount: Plane) -> None:
    """Take the share ``amount`` (in [0, 1]) of the light away, in place."""
    image *= 1 - amount


def inside(distance: Plane, softness: float = 0.025) -> Plane:
    """Coverage of a shape from a distance that is negative inside it; the edge is ``softness`` wide."""
    return np.clip(0.5 - distance * (1 / softness), 0, 1)


def rise(value: Plane, low: float, high: float) -> Plane:
    """Smooth step from 0 at ``low`` to 1 at ``high`` (which may be the smaller one)."""
    t = np.clip((value - low) * (1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def bump(x: Plane, y: Plane, width: float, height: float) -> Plane:
    """A Gaussian hill of height 1 round the origin."""
    return np.exp(-((x * (1 / width)) ** 2) - (y * (1 / height)) ** 2)


def norm(x: Plane, y: Plane) -> Plane:
    """Distance from the origin; ten times as fast as ``np.hypot``, whose care for overflow is not needed."""
    return np.sqrt(x * x + y * y)


def ridge(distance: Plane, width: float) -> Plane:
    """A Gaussian line of height 1 along ``distance`` = 0."""
    return np.exp(-((distance * (1 / width)) ** 2))


def clouds(generator: np.random.Generator, side: int, cells: int) -> Plane:
    """Smooth noise ``(side, side)`` of mean 0 and deviation of about 1, with ``cells`` knots a side."""
    knots = generator.standard_normal((cells, cells), dtype=np.float32)
    return 1.2 * cv2.resize(knots, (side, side), interpolation=cv2.INTER_CUBIC)


def soften(plane: Plane, radius: float) -> Plane:
    """Blur by a box of half side ``radius``, a share of the photo's side."""
    width = 2 * int(radius * plane.shape[-1]) + 1
    return np.asarray(cv2.blur(plane, (width, width)), dtype=np.float32)
