"""What makes one procedural face differ from another."""

from __future__ import annotations

from dataclasses import dataclass

Colour = tuple[float, float, float]
"""sRGB, 0-255."""


@dataclass(frozen=True)
class Pose:
    """Where the head stands in the photo and how it is turned."""

    right: float  # of the photo's centre, half sides
    down: float
    scale: float
    roll: float  # radians, clockwise
    yaw: float  # share of the depth by which features move right
    pitch: float  # share of the depth by which features move down


@dataclass(frozen=True)
class Light:
    """A key light and the light from all round, linear."""

    direction: tuple[float, float, float]  # towards the light: right, down, out of the photo; length 1
    key: Colour
    ambient: Colour


@dataclass(frozen=True)
class Shape:
    """The head's form, in head units (1 is half the photo at scale 1)."""

    width: float
    chin: float  # v of the chin
    taper: float  # share of the width lost at the chin
    squareness: float  # of the jaw; 0 is an ellipse
    cheeks: float
    nose_length: float
    nose_width: float
    nose_height: float
    ears: float


@dataclass(frozen=True)
class Skin:
    colour: Colour
    blush: float
    freckles: float
    mottle: float
    gloss: float
    age: float  # 0 young, 1 old


@dataclass(frozen=True)
class Eyes:
    white: Colour
    iris: Colour
    spacing: float
    width: float
    opening: float
    tilt: float
    gaze: tuple[float, float]
    lashes: float
    shadow: float  # make-up on the lids


@dataclass(frozen=True)
class Brows:
    colour: Colour
    height: float
    thickness: float
    arch: float
    tilt: float


@dataclass(frozen=True)
class Mouth:
    lips: Colour
    teeth: Colour
    paint: float  # how far the lips leave the skin's own colour
    width: float
    fullness: float
    smile: float
    opening: float  # 0 closed; teeth show above


@dataclass(frozen=True)
class Hair:
    style: str  # bald, horseshoe, buzz, short, quiff, fringe, long, bob, bun, curly
    colour: Colour
    volume: float
    line: float  # v of the hairline above the nose
    parting: float
    sweep: float
    wave: float
    length: float  # v of the ends


@dataclass(frozen=True)
class Beard:
    style: str  # none, stubble, moustache, goatee, full
    colour: Colour


@dataclass(frozen=True)
class Glasses:
    style: str  # none, round, square, sun
    frame: Colour
    width: float
    height: float
    thickness: float


@dataclass(frozen=True)
class Scene:
    """What is behind and below the face, and the camera."""

    wall: Colour
    other: Colour
    pattern: str  # plain, gradient, bokeh, bricks, stripes, garden
    clothes: Colour
    trim: Colour
    collar: str  # round, vee, shirt
    noise: float
    focus: float  # blur, px of the finished photo
    vignette: float


@dataclass(frozen=True)
class Traits:
    pose: Pose
    light: Light
    shape: Shape
    skin: Skin
    eyes: Eyes
    brows: Brows
    mouth: Mouth
    hair: Hair
    beard: Beard
    glasses: Glasses
    scene: Scene
