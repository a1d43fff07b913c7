"""Labels, weights, image cache, augmentation and batches of the age folders."""

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image
from torchvision import transforms

from conftest import load

datasets = load("agedb-dir", "datasets")
image_cache = load("agedb-dir", "image_cache")


@pytest.fixture
def faces(tmp_path):
    """Twelve noise images of several sizes and modes, and their meta file."""
    rng = np.random.default_rng(0)
    rows = []
    (tmp_path / "AgeDB").mkdir()
    for i in range(12):
        shape = (40 + 5 * i, 64 + 3 * i) + ((3,) if i % 3 else ())
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        path = f"AgeDB/{i}_Name_{20 + i}_f.jpg"
        Image.fromarray(pixels).save(tmp_path / path)
        rows.append((20 + i, path, ("train", "train", "val", "test")[i % 4]))
    pd.DataFrame(rows, columns=["age", "path", "split"]).to_csv(tmp_path / "agedb.csv", index=False)
    return tmp_path


def per_file(files, size, *augmentation):
    """The pipeline a reader would write with torchvision, one file at a time."""
    pipeline = transforms.Compose([
        transforms.Resize((size, size)), *augmentation, transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip
    return torch.stack([pipeline(Image.open(file).convert("RGB")) for file in files])


@pytest.mark.parametrize("cached", [True, False])
def test_evaluation_equals_per_file_pipeline(faces, cached):
    meta = datasets.read_meta(faces, "agedb")
    cache = faces / "cache" if cached else None
    images = image_cache.Images(faces, meta["path"], 32, cache, quiet=True)
    rows = np.array([7, 0, 3, 11])
    got = datasets.normalize(images.read(rows))
    expected = per_file([faces / meta["path"][row] for row in rows], 32)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@pytest.mark.parametrize("function", ["crop_by_index", "crop_by_slices", "augment"])
def test_augment_equals_torchvision_for_every_draw(faces, function):
    file = faces / "AgeDB/5_Name_25_f.jpg"
    pixels = image_cache.load_image(file, 24)
    image = Image.open(file).convert("RGB").resize((24, 24), Image.Resampling.BILINEAR)
    padded = F.pad(image, 16)
    draws = [(t, l, f) for t in range(0, 33, 4) for l in range(0, 33, 4) for f in (False, True)]
    top, left, flip = (torch.tensor(column) for column in zip(*draws))
    images = torch.from_numpy(pixels.copy()).expand(len(draws), -1, -1, -1).contiguous()
    got = getattr(datasets, function)(images, top, left, flip)
    for i, (t, l, f) in enumerate(draws):
        crop = F.crop(padded, t, l, 24, 24)
        crop = F.hflip(crop) if f else crop
        assert torch.equal(got[i].permute(2, 0, 1), F.pil_to_tensor(crop)), draws[i]
