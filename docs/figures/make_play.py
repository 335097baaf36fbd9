"""Makes play.gif, the same keys in three scenes, imagined by the shipped model after a first frame.

python docs/figures/make_play.py
"""

import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lawm_jax.play import directions, load
from lawm_jax.play.world import Imagined

SCENES = (3, 5, 11)  # held-out clips of the Panda
# Steps, key, what it does, multiples of the usual real action.
KEYS = (
    (3, "A", "y -", (0, -1, 0)),
    (4, "D", "y +", (0, 1, 0)),
    (3, "Q", "z -", (0, 0, -1)),
    (3, "E", "z +", (0, 0, 1)),
)
SIDE, BAR, SIZE = 192, 26, 0.7


def film(shared, clip):
    """Returns the pictures of one scene, with the key below, a list of PIL images."""
    world, start = shared.world, shared.sources["panda"].clips[clip]
    imagined = Imagined(world, world.start(start.video, start.s))
    mean, std = world.action_scale("panda")
    pictures = [framed(start.video[0], "first frame, real")] * 4
    for steps, key, text, values in KEYS:
        u = directions.action(mean, std, values, SIZE)
        for _ in range(steps):
            picture = imagined.step(world.map("panda", u, imagined.state))
            pictures.append(framed(picture, f"{key}   {text}"))
    return pictures


def framed(picture, text):
    image = Image.new("RGB", (SIDE, SIDE + BAR), "white")
    image.paste(Image.fromarray(picture).resize((SIDE, SIDE), Image.LANCZOS))
    font = ImageFont.load_default(14)
    ImageDraw.Draw(image).text((6, SIDE + 5), text, "black", font)
    return image


def main():
    """Writes play.gif beside this file."""
    shared = load.load("nano", source="panda")
    rows = [film(shared, clip) for clip in SCENES]
    frames = [np.hstack([np.asarray(x) for x in both]) for both in zip(*rows, strict=True)]
    frames = [Image.fromarray(x).quantize(128, dither=Image.Dither.NONE) for x in frames]
    path = pathlib.Path(__file__).with_name("play.gif")
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=200, loop=0)
    print(f"{path}: {len(frames)} frames, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
