from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
from compared import close
from torch import Tensor

from lilliput.errors import MeasureError
from lilliput.measure import Distance, DistanceSoFar
from lilliput.outputs import flatten_outputs


def distance(*batches: tuple[object, object]) -> Distance:
    so_far = DistanceSoFar()
    for reference, output in batches:
        so_far.add(reference, output)
    return so_far.distance()


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
    assert (found.largest_error, found.sqnr_db, found.top1_agreement) == (0.0, math.inf, 1.0)
    assert found.cosine == pytest.approx(1.0, abs=1e-12)
    assert found.samples == 8


def test_known_noise_has_the_sqnr_of_its_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(2000, 50, generator=generator)
    noise = 0.01 * torch.randn(2000, 50, generator=generator)
    assert distance((signal, signal + noise)).sqnr_db == pytest.approx(40.0, abs=0.1)
    assert distance((signal, 0.9 * signal)).sqnr_db == pytest.approx(20.0, abs=1e-4)


def test_batches_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(30, 4, generator=generator), torch.randn(30, 4, generator=generator)
    whole, parts = distance((a, b)), distance(*zip(a.split(7), b.split(7), strict=True))
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db)
    assert parts.cosine == pytest.approx(float(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)))
    assert parts.largest_error == whole.largest_error == float((a - b).abs().max())
    assert torch.equal(parts.cosines, whole.cosines)
    close(parts.cosines, torch.cosine_similarity(a, b))


def test_agreement_is_told_for_each_sample() -> None:
    reference = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    output = torch.tensor([[0.0, 2.0], [0.0, 1.0], [0.9, 1.0], [0.0, math.nan]])
    found = distance((reference, output))
    assert found.agreements is not None
    assert found.agreements.tolist() == [True, False, True, False]
    assert found.top1_agreement == 0.5


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3, 2)])
def test_agreement_is_none_where_outputs_are_no_classes(shape: tuple[int, ...]) -> None:
    found = distance((torch.ones(shape), torch.ones(shape)))
    assert found.top1_agreement is None
    assert found.agreements is None
    assert found.cosines.shape == (4,)


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
    assert distance((torch.zeros(1, 2), torch.zeros(1, 2))).cosine == 1.0
    found = distance((torch.zeros(1, 2), torch.ones(1, 2)))
    assert (found.cosine, found.sqnr_db) == (0.0, -math.inf)


def test_outputs_that_do_not_match_are_refused() -> None:
    with pytest.raises(MeasureError, match=r"output 1: the shapes differ: \[2\].*\[3\]"):
        distance(((torch.ones(1), torch.ones(2)), (torch.ones(1), torch.ones(3))))
    with pytest.raises(MeasureError, match="2 outputs in the reference, 1 in"):
        distance(((torch.ones(1), torch.ones(2)), torch.ones(1)))
    with pytest.raises(MeasureError, match="no tensor to compare"):
        distance(({1}, {1}))
    with pytest.raises(MeasureError, match="no tensor to compare"):
        distance((None, None))
    with pytest.raises(MeasureError, match="no samples"):
        distance()
