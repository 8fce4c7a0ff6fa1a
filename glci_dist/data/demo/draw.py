"""How a face's traits are drawn: what goes with what, and how far each may stray."""

from __future__ import annotations

import numpy as np

from glci_dist.data.demo import traits
from glci_dist.data.demo.traits import Colour


def _palette(colours: str) -> tuple[Colour, ...]:
    """Colours from their hex digits."""
    levels = [bytes.fromhex(colour) for colour in colours.split()]
    return tuple((red, green, blue) for red, green, blue in levels)


SKINS = _palette("fad6be f2c6a8 e2b494 ce9a76 b07a56 8c5c3e 704832 5a3a2a")
HAIRS = _palette("1e1818 30221c 4e3424 704a2e 96683e c49c62 debe86 9c4a26 803022")
GREY: Colour = (190, 188, 186)
IRISES = _palette("3e2618 583820 74522c 686c3e 547a5c 5880a4 7892a8")
LIPS = _palette("ba605c c8545c ac3c48 96343c ce7070")
CLOTHES = _palette("20222a ecece8 2c4270 8c282c 3e604c 787a80 ceac5c b0788c 604838 548cb0")
WALLS = _palette("ceccc6 96a4b2 607068 b69878 464e60 7c9670 c4a6a0 343234 709ec6 9e7058")
FRAMES = _palette("161416 54301c 968c78 3c4058 822428")


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """``share`` of the second colour, the rest of the first."""
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


class _Dice:
    """Short names for the draws; one generator, in a fixed order."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def between(self, low: float, high: float) -> float:
        return float(self._generator.uniform(low, high))

    def about(self, mean: float, deviation: float) -> float:
        """Normal, cut at two deviations."""
        return mean + deviation * float(np.clip(self._generator.standard_normal(), -2, 2))

    def chance(self, share: float) -> bool:
        return bool(self._generator.random() < share)

    def among(self, palette: tuple[Colour, ...], jitter: float = 8) -> Colour:
        return self.near(palette[int(self._generator.integers(len(palette)))], jitter)

    def along(self, palette: tuple[Colour, ...], share: float) -> Colour:
        """A colour between neighbours of the palette; ``share`` in [0, 1] of the way along it."""
        place = float(np.clip(share, 0, 1)) * (len(palette) - 1.001)
        return mix(palette[int(place)], palette[int(place) + 1], place % 1)

    def near(self, colour: Colour, jitter: float) -> Colour:
        red, green, blue = np.clip(np.asarray(colour) + self._generator.uniform(-jitter, jitter, 3), 4, 252)
        return float(red), float(green), float(blue)

    def style(self, **weights: float) -> str:
        shares = np.array(list(weights.values()))
        return str(self._generator.choice(list(weights), p=shares / shares.sum()))


def draw_traits(generator: np.random.Generator) -> traits.Traits:
    """One face's traits; tone, age and build are drawn first, and the rest leans on them."""
    dice = _Dice(generator)
    tone, age, delicate = dice.between(0, 1), dice.between(0, 1) ** 1.5, dice.chance(0.5)
    skin = dice.near(dice.along(SKINS, tone), 5)
    hair = _draw_hair(dice, tone, age, delicate)
    beard = _draw_beard(dice, age, delicate, hair.colour)
    return traits.Traits(
        pose=_draw_pose(dice),
        light=_draw_light(dice, tone),
        shape=_draw_shape(dice, delicate),
        skin=_draw_skin(dice, skin, tone, age, delicate),
        eyes=_draw_eyes(dice, skin, tone, age, delicate),
        brows=_draw_brows(dice, hair.colour, age, delicate),
        mouth=_draw_mouth(dice, skin, tone, delicate),
        hair=hair,
        beard=beard,
        glasses=_draw_glasses(dice, age),
        scene=_draw_scene(dice),
    )


def _draw_pose(dice: _Dice) -> traits.Pose:
    return traits.Pose(
        right=dice.about(0, 0.02),
        down=dice.about(0.06, 0.02),
        scale=dice.about(1.08, 0.03),
        roll=dice.about(0, 0.045),
        yaw=dice.about(0, 0.13),
        pitch=dice.about(0, 0.05),
    )


def _draw_light(dice: _Dice, tone: float) -> traits.Light:
    azimuth, elevation = dice.about(0, 0.6), dice.between(0.15, 0.8)
    direction = (
        float(np.sin(azimuth) * np.cos(elevation)),
        float(-np.sin(elevation)),
        float(np.cos(azimuth) * np.cos(elevation)),
    )
    exposure = 1 + 0.45 * tone  # a camera opens up for darker skin
    strength, ambient = exposure * dice.between(0.66, 0.96), exposure * dice.between(0.2, 0.42)
    warmth = dice.about(0, 0.09)
    return traits.Light(
        direction=direction,
        key=(strength * (1 + warmth), strength, strength * (1 - 1.3 * warmth)),
        ambient=(ambient * (1 - 0.5 * warmth), ambient, ambient * (1 + 0.7 * warmth)),
    )


def _draw_shape(dice: _Dice, delicate: bool) -> traits.Shape:
    return traits.Shape(
        width=dice.about(0.485 if delicate else 0.51, 0.018),
        chin=dice.about(0.65 if delicate else 0.69, 0.022),
        taper=dice.about(0.26 if delicate else 0.17, 0.05),
        squareness=dice.about(0.1 if delicate else 0.3, 0.08),
        cheeks=dice.between(0.5, 1.3),
        nose_length=dice.about(0.2, 0.014),
        nose_width=dice.about(0.068 if delicate else 0.08, 0.009),
        nose_height=dice.about(0.09, 0.015),
        ears=dice.between(0.85, 1.2),
    )


def _draw_skin(dice: _Dice, colour: Colour, tone: float, age: float, delicate: bool) -> traits.Skin:
    return traits.Skin(
        colour=colour,
        blush=dice.between(0.1, 0.7 if delicate else 0.5),
        freckles=dice.between(0.3, 1) if tone < 0.4 and dice.chance(0.25) else 0.0,
        mottle=dice.between(0.01, 0.04) + 0.03 * age,
        gloss=dice.between(0.03, 0.14) + 0.02 * tone,
        age=age,
    )


def _draw_eyes(dice: _Dice, skin: Colour, tone: float, age: float, delicate: bool) -> traits.Eyes:
    light_iris = dice.chance(0.65 * (1 - tone) ** 1.5)
    return traits.Eyes(
        white=mix((202, 190, 184), skin, 0.4 * tone),
        iris=dice.near(dice.along(IRISES, dice.between(0.4, 1) if light_iris else dice.between(0, 0.3)), 6),
        spacing=dice.about(0.212, 0.009),
        width=dice.about(0.122 if delicate else 0.115, 0.006),
        opening=dice.about(0.5 if delicate else 0.43, 0.06) - 0.06 * age,
        tilt=dice.about(-0.06, 0.05),
        gaze=(dice.about(0, 0.12), dice.about(0.02, 0.05)),
        lashes=dice.between(0.6, 1) if delicate else dice.between(0.3, 0.6),
        shadow=dice.between(0.2, 0.8) if delicate and dice.chance(0.3) else 0.0,
    )


def _draw_brows(dice: _Dice, hair: Colour, age: float, delicate: bool) -> traits.Brows:
    return traits.Brows(
        colour=mix(mix(hair, (40, 30, 26), 0.45), GREY, 0.4 * max(age - 0.6, 0)),
        height=dice.about(0.148, 0.012),
        thickness=dice.about(0.02 if delicate else 0.03, 0.005),
        arch=dice.about(0.04 if delicate else 0.025, 0.012),
        tilt=dice.about(-0.05, 0.08),
    )


def _draw_mouth(dice: _Dice, skin: Colour, tone: float, delicate: bool) -> traits.Mouth:
    # Lips are as dark as the skin around them.
    lips = mix(dice.among(LIPS), (40, 16, 18), 0.65 * tone**1.5)
    painted = delicate and dice.chance(0.45)
    smiling = dice.chance(0.55)
    return traits.Mouth(
        lips=mix(lips, skin, 0.1 if painted else 0.3 + 0.2 * tone),
        teeth=mix((222, 215, 204), skin, 0.25 * tone),
        paint=dice.between(0.75, 0.95) if painted else dice.between(0.4, 0.65),
        width=dice.about(0.16, 0.01) + (0.025 if smiling else 0),
        fullness=dice.about(1.1 if delicate else 0.9, 0.15),
        smile=dice.between(0.5, 1) if smiling else dice.about(0.05, 0.15),
        opening=dice.between(0.12, 0.34) if smiling and dice.chance(0.6) else 0.0,
    )


def _draw_hair(dice: _Dice, tone: float, age: float, delicate: bool) -> traits.Hair:
    if delicate:
        style = dice.style(long=4, bob=2.5, bun=1.5, fringe=1, curly=1, short=0.7)
    else:
        style = dice.style(short=4, quiff=2.5, buzz=1.3, horseshoe=2 * age, bald=0.7, curly=0.8, long=0.6)
    dark = tone > 0.55 or dice.chance(0.3)
    colour = dice.near(dice.along(HAIRS, dice.between(0, 0.2 if dark else 1.0)), 5)
    curly, length = style == "curly", {"long": dice.between(0.8, 1.4), "bob": dice.between(0.35, 0.6)}
    return traits.Hair(
        style=style,
        colour=mix(colour, GREY, float(np.clip(dice.about(1.6 * age - 0.75, 0.15), 0, 0.95))),
        volume=dice.between(0.13, 0.25) if curly else dice.between(0.05, 0.12),
        line=dice.about(-0.45, 0.03) - (0.05 * age if not delicate else 0),
        parting=dice.about(0, 0.13),
        sweep=dice.about(0, 0.5),
        wave=dice.between(0, 0.09),
        length=length.get(style, dice.between(-0.12, 0.06)),
    )


def _draw_beard(dice: _Dice, age: float, delicate: bool, hair: Colour) -> traits.Beard:
    if delicate:
        return traits.Beard(style="none", colour=hair)
    style = dice.style(none=4, stubble=2.5, moustache=0.9, goatee=1, full=2)
    return traits.Beard(style=style, colour=mix(mix(hair, (50, 34, 26), 0.3), GREY, 0.3 * age))


def _draw_glasses(dice: _Dice, age: float) -> traits.Glasses:
    worn = dice.chance(0.16 + 0.16 * age)
    return traits.Glasses(
        style=dice.style(round=1.3, square=1.7, sun=0.7) if worn else "none",
        frame=dice.among(FRAMES, 6),
        width=dice.about(0.168, 0.008),
        height=dice.about(0.125, 0.01),
        thickness=dice.between(0.05, 0.14),
    )


def _draw_scene(dice: _Dice) -> traits.Scene:
    return traits.Scene(
        wall=dice.among(WALLS, 16),
        other=dice.among(WALLS, 16),
        pattern=dice.style(plain=1.5, gradient=3, bokeh=2.5, bricks=1, stripes=0.8, garden=1.5),
        clothes=dice.among(CLOTHES, 12),
        trim=dice.among(CLOTHES, 12),
        collar=dice.style(round=2, vee=1.2, shirt=1.3),
        noise=dice.between(0.003, 0.012),
        focus=dice.between(0, 0.55),
        vignette=dice.between(0, 0.25),
    )
