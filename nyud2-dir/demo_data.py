"""Render a small set of made-up rooms in NYUD2's layout, so that the folder runs without it.

It writes `nyu2_train/<scene>_out/*.jpg` with 8-bit depths, `nyu2_test/*` with 16-bit depths, the
lists, the FDS subset and the balanced test mask. Depths are skewed as indoor scenes' are: most
pixels between 1 and 4 m, few near 10 m. No number obtained on them says anything about real rooms.

    # About two minutes of CPU time, shared among the processes.
    python demo_data.py --out ./data --scenes 200 --frames 3 --test 100 --seed 0
    # Again, with a sheet to look at.
    python demo_data.py --out ./data --overwrite --contact_sheet rooms.png
"""

import argparse
import os
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

import program
from demo.rooms import make_scene, make_view, render
from pair_lists import MASK, SUBSET, TEST, TRAIN
from prepare import SUBSET_SIZE, make_mask, make_subset, write_list

HEIGHT = 240  # of a picture, pixels: what training scales the real ones to
SUBSET_SHARE = 0.25  # of the training images, for FDS's statistics
MASK_LEAST = 300  # pixels of each bucket in the test mask, where there are as many
SCENE = re.compile(r"[a-z_]+_\d{4}[ab]_out")


def take_picture(rng, scene, height=HEIGHT):
    """Render a view of a room as a camera would take it.

    Args:
        rng: `numpy.random.Generator`.
        scene: what `demo.rooms.make_scene` returns.
        height: of the picture, pixels.

    Returns:
        PIL image, RGB, and depth float32 [height, 4/3 · height] in metres, 0.4 to 10.
    """
    image, depth = render(scene, make_view(rng, scene), height)
    cast = rng.normal(1, 0.05, 3) * rng.uniform(0.8, 1.15)
    image = np.clip(image * cast, 0, 1) ** rng.uniform(0.7, 1.0)
    image = image + rng.normal(0, rng.uniform(0.005, 0.03), image.shape)
    picture = Image.fromarray(np.uint8(np.clip(image, 0, 1) * 255))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7))), np.maximum(depth, 0.4)


def write_scene(number, out, seed, frames, test):
    """Render one scene's pairs and return their rows. Its generator depends only on its number."""
    rng = np.random.default_rng([seed, int(test), number])
    scene, rows = make_scene(rng), []
    for frame in range(frames):
        image, depth = take_picture(rng, scene)
        if test:
            stem = f"nyu2_test/{number * frames + frame:05d}"
            names = f"{stem}_colors.png", f"{stem}_depth.png"
            values = np.round(depth * 1000).astype(np.uint16)
        else:
            # Half of a scene's frames are in its part a, half in b: they belong together.
            folder = f"{scene.kind}_{number:04d}{'ab'[2 * frame // frames]}_out"
            names = tuple(f"nyu2_train/{folder}/{1 + frame}.{kind}" for kind in ("jpg", "png"))
            values = np.round(depth / 10 * 255).astype(np.uint8)
        for name, picture in zip(names, (image, Image.fromarray(values))):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            picture.save(out / name, quality=92)
        rows.append([f"data/{name}" for name in names])
    return rows


def write_contact_sheet(file, out, rows, columns=6):
    """Write a sheet of pairs: an image above its depth, near dark and far light."""
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, 4 * columns).astype(int)]
    width, height = 240, 180
    sheet = Image.new("RGB", (columns * width, 8 * height), "white")
    for i, row in enumerate(chosen):
        for below, name in enumerate(row):
            with Image.open(out / name.removeprefix("data/"), formats=("JPEG", "PNG")) as picture:
                place = i % columns * width, (2 * (i // columns) + below) * height
                sheet.paste(picture.convert("RGB").resize((width, height)), place)
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)


def remove_demo(out):
    """Remove an earlier demo; refuse if the folder holds other data."""
    foreign = [p.name for p in (out / "nyu2_train").glob("*") if not SCENE.fullmatch(p.name)]
    if foreign or ((out / TRAIN).exists() and not (out / "demo.txt").exists()):
        raise ValueError(f"{out} holds data that is no demo ({foreign[:3]}): give another --out")
    for name in ("nyu2_train", "nyu2_test"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (TRAIN, TEST, SUBSET, MASK):
        (out / name).unlink(missing_ok=True)


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(usage=program.USAGE, description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default="./data", help="folder of the data")
    parser.add_argument("--scenes", type=int, default=200, help="training scenes")
    parser.add_argument("--frames", type=int, default=3, help="pairs of a training scene")
    parser.add_argument("--test", type=int, default=100, help="test pairs, each of a new scene")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo")
    parser.add_argument("--contact_sheet", type=Path, help="also write a sheet of pairs, a .png")
    args = parser.parse_args(argv)
    for flag, least in (("scenes", 2), ("frames", 1), ("test", 1), ("seed", 0), ("workers", 1)):
        if getattr(args, flag) < least:
            parser.error(f"--{flag} is {getattr(args, flag)}: it must be >= {least}")
    if args.contact_sheet and args.contact_sheet.suffix != ".png":
        parser.error(f"--contact_sheet is {args.contact_sheet}: its name must end in .png")
    return args


def main(argv=None):
    """Write the pairs, then the lists, the subset and the mask."""
    args = parse_args(argv)
    if (args.out / TRAIN).exists() and not args.overwrite:
        raise ValueError(f"{args.out / TRAIN} exists: use --overwrite or give another --out")
    remove_demo(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "demo.txt").write_text("Generated by demo_data.py.\n", encoding="utf-8")
    lists = {}
    with ProcessPoolExecutor(args.workers) as pool:
        for name, scenes, frames in ((TRAIN, args.scenes, args.frames), (TEST, args.test, 1)):
            write = partial(
                write_scene, out=args.out, seed=args.seed, frames=frames, test=name == TEST
            )
            done = tqdm(pool.map(write, range(scenes)), name, scenes, unit="scene")
            lists[name] = [row for rows in done for row in rows]
    for name, rows in lists.items():
        write_list(args.out / name, rows)
    make_subset(args.out, args.seed, min(SUBSET_SIZE, round(SUBSET_SHARE * len(lists[TRAIN])) or 1))
    make_mask(args.out, args.seed, MASK_LEAST)
    if args.contact_sheet:
        write_contact_sheet(args.contact_sheet, args.out, lists[TRAIN])
        print(f"wrote {args.contact_sheet}")


if __name__ == "__main__":
    program.run(main)
