"""The procedural world of sprites that the embedded model lives in.

Coloured shapes on a patterned wall: they bounce, orbit, or pass by while the camera pans over a
panorama that closes on itself, so that objects that left the view return. Every attribute can be read
back from pixels (``world/checker.py``), and every scene can be captioned, in full or in part.

A frame is 64 units wide and high, drawn at 128x128 pixels, 8 frames a second. Random generators are arguments; nothing
here has a state.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

SIZE = 64  # height and width of a frame in units, in which everything here is measured
PIXELS = 128  # height and width of a drawn frame
FPS = 8
SPEED, SLOW = 2.0, 1.1  # units a frame, of a panning camera
GAP = 0.85  # bouncing objects turn back at this share of the sum of their radii

Motion = Literal["bounce", "orbit", "pan"]

OBJECT_COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "green": (35, 185, 60),
    "blue": (40, 75, 235),
    "yellow": (245, 220, 45),
    "orange": (245, 135, 20),
    "purple": (150, 50, 190),
    "white": (245, 245, 245),
    "black": (18, 18, 22),
}
WALL_COLORS: dict[str, tuple[int, int, int]] = {
    "blue": (90, 125, 185),
    "green": (100, 155, 110),
    "gray": (140, 140, 145),
    "brown": (135, 100, 70),
    "pink": (215, 150, 170),
}
SHAPES = ("circle", "square", "triangle", "cross")
PATTERNS = ("plain", "striped", "dotted")
SIZES: dict[str, float] = {"small": 12.0, "large": 16.0}  # radius in units
MOTIONS: tuple[Motion, ...] = ("bounce", "orbit", "pan")


@dataclass(frozen=True)
class Sprite:
    """One object: colour, shape and size, without a position."""

    color: str
    shape: str
    size: str

    @property
    def radius(self) -> float:
        """In units."""
        return SIZES[self.size]


@dataclass(frozen=True)
class Scene:
    """Content of a video.

    For a panning camera: ``lap`` is the circumference of the panorama and ``spacing`` the distance between neighbours,
    both in units, where None spreads them over the lap; ``speed`` is the camera's, in units a frame; ``shaded`` says
    whether brightness varies with position.
    """

    sprites: tuple[Sprite, ...]
    wall: str
    pattern: str
    motion: Motion
    lap: int = 160
    shaded: bool = True
    spacing: float | None = None
    speed: float = SPEED


def held_out(sprite: Sprite, wall: str) -> bool:
    """Whether this combination is held out of all training (one in ten), for unseen prompts."""
    digest = hashlib.sha256(f"{sprite.color} {sprite.shape} {wall}".encode()).digest()
    return digest[0] % 10 == 0


LAPS = {1: 160, 2: 160, 3: 256, 4: 320}  # by the number of objects


def random_scene(
    rng: random.Random, *, unseen: bool = False, count: int | None = None, motion: Motion | None = None
) -> Scene:
    """A scene of sprites of different colours; all (``unseen``) or none of them are held out of training.

    Without ``count`` there are one to three, or up to four that pass by; fewer where not so many are held out.
    """
    moving: Motion = rng.choice(MOTIONS) if motion is None else motion
    wall, pattern = rng.choice(tuple(WALL_COLORS)), rng.choice(PATTERNS)
    count = count or rng.choice((1, 2, 2, 3, 3, 4) if moving == "pan" else (1, 1, 2, 2, 3))
    kinds = [
        (color, shape)
        for color in OBJECT_COLORS
        for shape in SHAPES
        if color != wall and held_out(Sprite(color, shape, "large"), wall) == unseen
    ]
    sprites: list[Sprite] = []
    while kinds and len(sprites) < count:
        color, shape = rng.choice(kinds)
        room = moving == "pan" or count < 3  # three in one view are small
        sprites.append(Sprite(color, shape, rng.choice(tuple(SIZES)) if room else "small"))
        kinds = [kind for kind in kinds if kind[0] != color]
    if not sprites:  # nothing is held out on this wall
        return random_scene(rng, unseen=unseen, count=count, motion=motion)
    if moving != "pan":
        return Scene(tuple(sprites), wall, pattern, moving)
    speed = rng.choice((SPEED, SLOW)) if len(sprites) < 3 else SPEED  # so that three are seen within five seconds
    spacing = rng.uniform(44, 58)
    return Scene(tuple(sprites), wall, pattern, moving, LAPS[len(sprites)], spacing=spacing, speed=speed)


def drawn_scenes(count: int, *, unseen: bool = True, objects: int | None = None, seed: int = 2024) -> list[Scene]:
    """Random scenes in which every sprite (or, not ``unseen``, no sprite) was held out of training.

    With ``objects`` all have so many.
    """
    rng = random.Random(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng, unseen=unseen, count=objects)
        if objects is None or len(scene.sprites) == objects:
            scenes.append(scene)
    return scenes


# --- captions ---------------------------------------------------------------------------------------

WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "red", "red", "crimson", "scarlet"),
    "green": ("green", "green", "green", "emerald"),
    "blue": ("blue", "blue", "blue", "navy"),
    "yellow": ("yellow", "yellow", "yellow", "golden"),
    "orange": ("orange",),
    "purple": ("purple", "purple", "purple", "violet"),
    "white": ("white",),
    "black": ("black",),
    "gray": ("gray", "grey"),
    "brown": ("brown",),
    "pink": ("pink", "pink", "rose"),
    "circle": ("circle", "circle", "circle", "ball", "disc", "disk"),
    "square": ("square", "square", "square", "box", "block"),
    "triangle": ("triangle", "triangle", "triangle", "wedge"),
    "cross": ("cross", "cross", "cross", "plus"),
    "small": ("small", "small", "little", "tiny"),
    "large": ("large", "large", "big", "huge"),
    "plain": ("plain", "plain", "flat", "smooth"),
    "striped": ("striped",),
    "dotted": ("dotted", "dotted", "spotted"),
    "wall": ("wall", "wall", "wall", "background", "backdrop"),
}
VERBS: dict[Motion, tuple[tuple[str, str], ...]] = {  # one, several
    "bounce": (("bounces around", "bounce around"), ("bounces", "bounce"), ("is bouncing", "are bouncing")),
    "orbit": (("goes round", "go round"), ("orbits", "orbit"), ("is orbiting", "are orbiting")),
    "pan": (("passes by", "pass by"), ("slides past", "slide past"), ("is passing by", "are passing by")),
}
SLOWLY = ("slowly", "slowly", "gently")
PLACES = ("on", "on", "in front of", "over", "against")


def caption(scene: Scene, rng: random.Random, *, keep: float = 1.0) -> str:
    """One sentence that describes the scene; each attribute is mentioned with probability ``keep``."""

    def mentioned() -> bool:
        return rng.random() < keep

    def word(name: str) -> str:
        return rng.choice(WORDS[name])

    def noun(sprite: Sprite) -> str:
        size = [word(sprite.size)] if rng.random() < 0.4 * keep else []
        color = [word(sprite.color)] if mentioned() else []
        parts = [*size, *color, word(sprite.shape) if mentioned() else "shape"]
        return f"{'an' if parts[0][0] in 'aeiou' else 'a'} {' '.join(parts)}"

    named = [noun(sprite) for sprite in scene.sprites if mentioned()] or [noun(scene.sprites[0])]
    subject = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    verb = f" {rng.choice(VERBS[scene.motion])[len(named) > 1]}" if mentioned() else ""
    if verb and scene.motion == "pan" and scene.speed == SLOW and mentioned():
        verb += f" {rng.choice(SLOWLY)}"
    pattern = [word(scene.pattern)] if rng.random() < 0.85 * keep else []
    color = [word(scene.wall)] if mentioned() else []
    place = f" {rng.choice(PLACES)} a {' '.join([*pattern, *color, word('wall')])}" if pattern or color else ""
    return f"{subject}{verb}{place}"


NUMBERS = {2: ("two", "two", "a couple of", "some"), 3: ("three", "several"), 4: ("several", "many")}


def vague_caption(scene: Scene, rng: random.Random, *, wall: bool = False) -> str:
    """A sentence that names no object's colour, shape or size, and the wall's look only if ``wall``."""
    count = len(scene.sprites)
    noun = rng.choice(("shape", "object")) + ("s" if count > 1 else "")
    verb = f" {rng.choice(VERBS[scene.motion])[count > 1]}" if rng.random() < 0.5 else ""
    pattern = f"{rng.choice(WORDS[scene.pattern])} " if wall and rng.random() < 0.85 else ""
    color = f"{rng.choice(WORDS[scene.wall])} " if wall else ""
    place = f" {rng.choice(PLACES)} a {pattern}{color}{rng.choice(WORDS['wall'])}"
    number = rng.choice(NUMBERS[count]) if count > 1 else "an" if noun == "object" else "a"
    return f"{number} {noun}{verb}{place if wall or rng.random() < 0.7 else ''}"


def prompt(scene: Scene) -> str:
    """The full caption in canonical words, without random choices."""
    nouns = [f"{'an' if s.color[0] in 'aeiou' else 'a'} {s.color} {s.shape}" for s in scene.sprites]
    subject = nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
    verb = VERBS[scene.motion][0][len(nouns) > 1]
    if scene.motion == "pan" and scene.speed == SLOW:
        verb += " slowly"
    return f"{subject} {verb} on a {scene.pattern} {scene.wall} wall"


# --- motion -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Track:
    """Positions in units: centres [T, O, 2] as (x, y), and the camera's x [T]."""

    centers: Tensor
    camera: Tensor


def move(scene: Scene, frames: int, rng: random.Random) -> Track:
    """Place the scene's sprites and move them for a number of video frames."""
    time = torch.arange(frames, dtype=torch.float32)
    if scene.motion == "pan":
        return _pan(scene, time, rng)
    if scene.motion == "orbit":
        period = rng.uniform(48, 96) * rng.choice((-1, 1))
        start, distance = rng.uniform(0, 2 * math.pi), rng.uniform(15.0, 16.5)
        phase = torch.tensor([2 * math.pi * i / len(scene.sprites) for i in range(len(scene.sprites))])
        angle = start + 2 * math.pi * time[:, None] / period + phase  # [T, O]
        centers = SIZE / 2 + distance * torch.stack((angle.cos(), angle.sin()), dim=-1)
        return Track(centers, torch.zeros(frames))
    return Track(_bounce(scene, frames, rng), torch.zeros(frames))


def _bounce(scene: Scene, frames: int, rng: random.Random) -> Tensor:
    """Centres [T, O, 2] of objects of equal mass that rebound from the edges and from each other."""
    radii = [sprite.radius for sprite in scene.sprites]
    while True:
        places = [[rng.uniform(radius, SIZE - radius) for _ in range(2)] for radius in radii]
        pairs = [(i, j) for j in range(len(radii)) for i in range(j)]
        if all(math.dist(places[i], places[j]) > GAP * (radii[i] + radii[j]) for i, j in pairs):
            break
    velocities = []
    for _ in radii:
        heading, speed = rng.uniform(0, 2 * math.pi), rng.uniform(1.0, 2.0)
        velocities.append([speed * math.cos(heading), speed * math.sin(heading)])
    centers = []
    for _ in range(frames):
        centers.append([tuple(place) for place in places])
        for place, velocity, radius in zip(places, velocities, radii, strict=True):
            for axis in range(2):
                place[axis] += velocity[axis]
                low, high = radius, SIZE - radius
                if not low <= place[axis] <= high:
                    place[axis] = 2 * (low if place[axis] < low else high) - place[axis]
                    velocity[axis] = -velocity[axis]
        for i, j in pairs:
            apart = [places[j][axis] - places[i][axis] for axis in range(2)]
            gap = math.hypot(*apart)
            if 0 < gap < GAP * (radii[i] + radii[j]):
                normal = [each / gap for each in apart]
                closing = sum((velocities[i][axis] - velocities[j][axis]) * normal[axis] for axis in range(2))
                for axis in range(2) if closing > 0 else ():  # an elastic collision
                    velocities[i][axis] -= closing * normal[axis]
                    velocities[j][axis] += closing * normal[axis]
    return torch.tensor(centers)


def _pan(scene: Scene, time: Tensor, rng: random.Random) -> Track:
    """A camera over a closed panorama; sometimes it pauses or turns back, so returns are irregular.

    Objects that are not spread over the lap come in their order, the first of them from the beginning on.
    """
    velocity = torch.full_like(time, scene.speed)
    if rng.random() < 0.5:  # in legs: forward, pause, back
        at = rng.randint(40, 72)
        while at < len(time):
            velocity[at:] = rng.choice((scene.speed, scene.speed, -scene.speed, 0.0))
            at += rng.randint(16, 64)
    direction = rng.choice((-1, 1))
    if scene.spacing is None:
        begin, spacing, jitter = rng.uniform(0, scene.lap), scene.lap / len(scene.sprites), 4.0
    else:  # the first object is behind the middle of the first frame, or a little ahead
        begin, spacing, jitter = direction * rng.uniform(-12, 20), direction * scene.spacing, 2.0
    camera = begin + direction * velocity.cumsum(0)
    heights = [SIZE / 2 + rng.uniform(-12, 12) for _ in scene.sprites]
    places = [(i * spacing + rng.uniform(-jitter, jitter), height) for i, height in enumerate(heights)]
    centers = torch.tensor(places)[None].repeat(len(time), 1, 1)
    ahead = torch.remainder(centers[..., 0] - camera[:, None] + scene.lap / 2, scene.lap) - scene.lap / 2
    centers[..., 0] = SIZE / 2 + ahead  # view coordinates: 0..64 is visible
    return Track(centers, camera)


# --- pixels -----------------------------------------------------------------------------------------


def distance(shape: str, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Signed distance in units to the outline of a shape, negative inside."""
    if shape == "circle":
        return (x.square() + y.square()).sqrt() - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.86 * radius
    if shape == "triangle":  # points up
        return torch.maximum(0.87 * x.abs() - 0.5 * y, y) - 0.62 * radius
    if shape == "cross":
        arm, reach = 0.34 * radius, radius
        tall = torch.maximum(x.abs() - arm, y.abs() - reach)
        wide = torch.maximum(x.abs() - reach, y.abs() - arm)
        return torch.minimum(tall, wide)
    raise ValueError(f"unknown shape {shape!r}")


def render(scene: Scene, track: Track, *, size: int = PIXELS) -> tuple[Tensor, Tensor]:
    """Draw a track: frames [T, 3, size, size] in [0, 1], and each pixel's coverage by shape, [T, 4, size, size]."""
    scale = size / SIZE  # pixels of a unit; outlines are antialiased over one pixel
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / scale
    x, y = axis[None, None, :], axis[None, :, None]
    along = x + track.camera[:, None, None]  # the wall moves with the panorama
    frames = _wall(scene, along, y.expand(len(track.camera), size, size), scale)  # [T, 3, H, W]
    cover = torch.zeros(len(frames), len(SHAPES), size, size)
    for index, sprite in enumerate(scene.sprites):
        center = track.centers[:, index]
        reach = sprite.radius + 2
        seen = ((center > -reach) & (center < SIZE + reach)).all(dim=1)
        if not seen.any():
            continue
        place = center[seen]
        outline = distance(sprite.shape, x - place[:, 0, None, None], y - place[:, 1, None, None], sprite.radius)
        alpha = (0.5 - scale * outline).clamp(0, 1)[:, None]  # [t, 1, H, W]
        color = torch.tensor(OBJECT_COLORS[sprite.color]).view(1, 3, 1, 1) / 255
        frames[seen] = torch.lerp(frames[seen], color.expand(len(alpha), 3, size, size), alpha)
        covered = cover[seen] * (1 - alpha)  # later sprites hide earlier ones
        covered[:, SHAPES.index(sprite.shape)] += alpha[:, 0]
        cover[seen] = covered
    return frames, cover


def _wall(scene: Scene, along: Tensor, y: Tensor, scale: float) -> Tensor:
    base = torch.tensor(WALL_COLORS[scene.wall]).view(1, 3, 1, 1) / 255
    if scene.pattern == "striped":
        ink = (6 * scale * torch.sin(2 * math.pi * along / 32)).clamp(-1, 1).expand_as(y)
    elif scene.pattern == "dotted":
        dx, dy = torch.remainder(along, 16) - 8, torch.remainder(y, 16) - 8
        ink = (scale * (4.0 - (dx.square() + dy.square()).sqrt())).clamp(-1, 1)
    else:
        ink = torch.zeros_like(y)
    place = 0.10 * torch.sin(2 * math.pi * along / scene.lap) if scene.motion == "pan" and scene.shaded else 0.0
    light = 1.0 + 0.18 * ink + place  # [T, H, W]; brightness varies along the panorama
    return (base * light[:, None]).clamp(0, 1)


def clip(scene: Scene, frames: int, rng: random.Random, *, size: int = PIXELS) -> tuple[Tensor, Tensor]:
    """A video of the scene: frames [T, 3, size, size] in [0, 1] and coverage by shape [T, 4, size, size]."""
    return render(scene, move(scene, frames, rng), size=size)
