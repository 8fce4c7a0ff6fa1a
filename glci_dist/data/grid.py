"""Titled grids of pictures: the training's picture grids and the evaluation's report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)
LARGEST_FONT, SMALLEST_FONT = 16, 8


def scale_to(size: int, target: int = 160) -> int:
    """The integer factor that scales a picture of ``size`` px to about ``target`` px; at least 1."""
    return max(1, round(target / size))


def grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], scale: int) -> np.ndarray:
    """One picture of titled columns: uint8 (H, W, 3).

    Each row has one uint8 picture (size, size, 3) per title, all of one size, drawn ``scale`` times larger. Raises
    ValueError for another number of pictures.
    """
    if not rows or any(len(row) != len(titles) for row in rows):
        raise ValueError(f"a grid needs rows of {len(titles)} pictures, one a title")
    height, width = (scale * side for side in rows[0][0].shape[:2])
    gap = max(2, width // 32)
    font = _font_for(titles, width)
    top = int(font.getbbox("Ag")[3]) + 3 * gap
    sheet = Image.new("RGB", (gap + len(titles) * (width + gap), top + len(rows) * (height + gap)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        centre = gap + column * (width + gap) + width / 2
        draw.text((centre, top / 2), title, fill=INK, font=font, anchor="mm")
    for line, row in enumerate(rows):
        for column, picture in enumerate(row):
            enlarged = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (gap + column * (width + gap), top + line * (height + gap)))
    return np.asarray(sheet)


def _font_for(titles: Sequence[str], width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in font, as large as the longest title allows."""
    for size in range(LARGEST_FONT, SMALLEST_FONT, -1):
        font = ImageFont.load_default(size)
        if max(font.getlength(title) for title in titles) <= width:
            return font
    return ImageFont.load_default(SMALLEST_FONT)
