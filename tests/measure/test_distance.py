from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor

from lilliput.errors import MeasureError
from lilliput.measure import KINDS, Distance, DistanceSoFar, Kind, furthest, misfit
from lilliput.outputs import flatten_outputs


def distances(*batches: tuple[object, object], samples: int | None = None, **kinds: Kind) -> list[Distance]:
    so_far = DistanceSoFar(kinds)
    for reference, output in batches:
        so_far.add(reference, output, samples)
    return so_far.distances()


def distance(*batches: tuple[object, object], kind: Kind = "values") -> Distance:
    so_far = DistanceSoFar({"": kind})
    for reference, output in batches:
        so_far.add(reference, output)
    [found] = so_far.distances()
    return found


class Boxes:
    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def to_tuple(self) -> tuple[Tensor, ...]:
        return self.tensors


def test_nested_outputs_are_flattened_in_order() -> None:
    a, b, c = torch.zeros(1), torch.ones(2), torch.ones(3)
    for nested in (
        (a, [b, {"c": c}]),
        {"a": a, "rest": (b, None, c)},
        Boxes(a, b, c),
        OrderedDict(a=a, b=b, c=c),
    ):
        assert [tensor.shape for tensor in flatten_outputs(nested)] == [(1,), (2,), (3,)]


def test_identical_outputs_are_at_no_distance() -> None:
    same = torch.randn(8, 5)
    found = distance((same, same.clone()))
    assert (found.largest_error, found.sqnr_db, found.samples) == (0.0, math.inf, 8)
    assert found.relative_errors.tolist() == [0.0] * 8


def test_known_noise_has_the_sqnr_of_its_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(2000, 50, generator=generator)
    noise = 0.01 * torch.randn(2000, 50, generator=generator)
    found = distance((signal, signal + noise))
    assert found.sqnr_db == pytest.approx(40.0, abs=0.1)
    assert float(found.relative_errors.mean()) == pytest.approx(0.01, rel=0.02)
    assert distance((signal, 0.9 * signal)).sqnr_db == pytest.approx(20.0, abs=1e-4)


def test_batches_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(30, 4, generator=generator), torch.randn(30, 4, generator=generator)
    for kind in ("values", "classes", "embedding"):
        whole, parts = distance((a, b), kind=kind), distance(*zip(a.split(7), b.split(7), strict=True), kind=kind)
        assert parts.sqnr_db == pytest.approx(whole.sqnr_db)
        assert parts.largest_error == whole.largest_error == float((a - b).abs().max())
        assert torch.equal(parts.relative_errors, whole.relative_errors)
        assert all(torch.equal(parts.scores[name], x) for name, x in whole.scores.items())
    close(distance((a, b), kind="embedding").scores["cosine"].float(), torch.cosine_similarity(a, b))


def test_the_worst_sample_is_that_with_the_largest_error() -> None:
    reference = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [5.0, 0.0]])
    output = reference + torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.5, 0.0]])
    found = distance((reference, output))
    length = math.sqrt(75 / 4)  # of a sample, on average: one of zeros has none of its own
    assert found.relative_errors.tolist() == pytest.approx([0, 1 / length, 2 / length, 0.5 / length])
    assert int(found.relative_errors.argmax()) == 2


def test_an_answer_is_told_for_each_sample() -> None:
    reference = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    output = torch.tensor([[0.0, 2.0], [0.0, 1.0], [0.9, 1.0], [0.0, math.nan]])
    assert distance((reference, output), kind="classes").scores["same_answer"].tolist() == [1, 0, 1, 0]
    masked = torch.tensor([[-math.inf, -1.0, -2.0]])  # what is ruled out is no answer
    assert distance((masked, masked), kind="classes").scores["same_answer"].tolist() == [1]
    places = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])  # two classes at two places
    assert distance((places, places.flip(1)), kind="classes").scores["same_answer"].tolist() == [0]
    assert distance((places, torch.eye(2)[None]), kind="classes").scores["same_answer"].tolist() == [0]
    assert distance((places, places.abs() * 2), kind="classes").scores["same_answer"].tolist() == [1]


def test_tokens_are_compared_word_by_word() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 7)
    other = logits.clone()
    other[0, 0] = -other[0, 0]
    found = distance((logits, other), kind="tokens")
    assert found.scores["same_token"].tolist() == pytest.approx([0.8, 1.0])
    p, q = (x[0, 0].double().softmax(-1) for x in (logits, other))
    assert found.scores["divergence"].tolist() == pytest.approx([float((p * (p / q).log()).sum()) / 5, 0.0])
    ruled_out = torch.tensor([[[0.0, 1.0, -math.inf]]])
    assert distance((ruled_out, ruled_out), kind="tokens").scores["divergence"].tolist() == [0.0]
    assert distance((logits, logits + 3.0), kind="tokens").scores["divergence"].tolist() == pytest.approx([0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_is_blind_to_a_factor_of_ten(kind: Kind) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 7)
    right, wrong = distance((logits, logits), kind=kind), distance((logits, 10 * logits), kind=kind)
    assert wrong.sqnr_db < 0 and float(wrong.relative_errors.min()) > 1
    told = {name: float(x.mean()) for name, x in wrong.scores.items()}
    blind = {"same_answer", "same_token", "cosine"}  # which is why none of them stands alone
    for name, x in right.scores.items():
        assert (told[name] == pytest.approx(float(x.mean()))) is (name in blind)
    if kind == "embedding":
        assert told["norm_ratio"] == pytest.approx(10)


def test_each_output_is_told_by_itself() -> None:
    a, b = torch.randn(6, 3), 1e4 * torch.randn(6, 2)
    found = distances(({"logits": a, "rest": (b,)}, {"logits": a + 0.1, "rest": (b + 0.1,)}), logits="classes")
    assert [(one.place, one.kind) for one in found] == [("logits", "classes"), ("rest.0", "values")]
    assert found[1].sqnr_db > 90 > found[0].sqnr_db and furthest(found) is found[0]


def test_rows_that_are_no_samples_are_one() -> None:
    hidden = torch.randn(2, 5, 3)  # of an LSTM of two layers, for five samples
    assert [one.samples for one in distances(((hidden, hidden[0]), (hidden, hidden[0])), samples=5)] == [1, 5]
    assert distances((torch.tensor(1.0), torch.tensor(2.0)), samples=1)[0].samples == 1


@pytest.mark.parametrize(
    ("batches", "constant"),
    [
        ([torch.ones(3, 2)], True),
        ([torch.tensor([[1.0, 2.0]] * 3)], True),
        ([torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]])], True),
        ([torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.1]])], False),
        ([torch.tensor([[1.0, 2.0]])], False),  # of one sample nobody knows
        ([torch.zeros(1, 4)], True),
        ([torch.zeros(1, 1)], False),
    ],
)
def test_an_output_that_is_always_the_same_is_known(batches: list[Tensor], constant: bool) -> None:
    assert distance(*((x, x) for x in batches)).constant is constant


def test_integers_and_half_floats_are_compared_exactly() -> None:
    found = distance((torch.tensor([[2**24, 1]]), torch.tensor([[2**24 + 1, 1]])))
    assert found.largest_error == 1.0
    assert distance((torch.ones(2, 2), torch.ones(2, 2).half())).sqnr_db == math.inf


def test_a_nan_or_infinity_of_the_output_is_an_infinite_error() -> None:
    for bad in (math.nan, math.inf):
        found = distance((torch.ones(1, 2), torch.tensor([[1.0, bad]])))
        assert (found.largest_error, found.sqnr_db) == (math.inf, -math.inf)
    masked = torch.tensor([[1.0, -math.inf]])
    assert distance((masked, masked.clone())).sqnr_db == math.inf


def test_zeros_against_zeros_are_alike() -> None:
    zeros, ones = torch.zeros(1, 2), torch.ones(1, 2)
    found = distance((zeros, zeros), kind="embedding")
    assert (found.scores["cosine"].item(), found.scores["norm_ratio"].item()) == (1.0, 1.0)
    found = distance((zeros, ones), kind="embedding")
    assert (found.scores["cosine"].item(), found.sqnr_db) == (0.0, -math.inf)
    assert math.isfinite(found.scores["norm_ratio"].item()) and found.scores["norm_ratio"].item() > 1e3


@pytest.mark.parametrize(
    ("kind", "shape", "fits"),
    [
        ("classes", (4, 3), True),
        ("classes", (4, 3, 8, 8), True),
        ("classes", (4, 1), False),
        ("classes", (4,), False),
        ("tokens", (4, 6, 50), True),
        ("tokens", (4, 50), False),
        ("embedding", (4, 6, 50), True),
        ("embedding", (4, 1), False),
        ("values", (), True),
    ],
)
def test_shapes_that_a_kind_cannot_have_are_told(kind: Kind, shape: tuple[int, ...], fits: bool) -> None:
    assert bool(misfit(kind, shape)) is not fits


def test_outputs_that_do_not_match_are_refused() -> None:
    with pytest.raises(MeasureError, match=r"output 1: the shapes differ: \[2\].*\[3\]"):
        distance(((torch.ones(1), torch.ones(2)), (torch.ones(1), torch.ones(3))))
    with pytest.raises(MeasureError, match="2 outputs in the reference, 1 in"):
        distance(((torch.ones(1), torch.ones(2)), torch.ones(1)))
    for nothing in ({1}, None):
        with pytest.raises(MeasureError, match="no tensor to compare"):
            distance((nothing, nothing))
    for empty in ([], [(torch.ones(0, 2), torch.ones(0, 2))]):
        given: list[Any] = empty
        with pytest.raises(MeasureError, match="no samples"):
            distance(*given)
    one = torch.ones(1)
    with pytest.raises(MeasureError, match="1 outputs after batches of 2"):
        distances(((one, one), (one, one)), (one, one))
