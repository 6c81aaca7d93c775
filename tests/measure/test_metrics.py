from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lilliput.errors import InputError, MeasureError
from lilliput.metrics import Metric, squared_error, top1

OUTPUTS = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
TARGETS = torch.tensor([0, 1, 1])


def test_top1_scores_each_sample() -> None:
    scores = top1([(OUTPUTS, TARGETS), (OUTPUTS[:1], TARGETS[:1])])(nn.Identity())
    assert scores.tolist() == [1.0, 1.0, 0.0, 1.0]
    assert scores.dtype is torch.float32


def test_metrics_say_which_way_is_better() -> None:
    assert top1([]).higher_is_better
    assert top1([]).name == "top1"
    assert not squared_error([]).higher_is_better


@pytest.mark.parametrize(
    "batch",
    [
        [OUTPUTS, TARGETS],
        ((OUTPUTS, 2 * OUTPUTS), TARGETS),
        ({"x": OUTPUTS}, TARGETS),
        {"x": OUTPUTS, "y": OUTPUTS, "labels": TARGETS},
    ],
)
@pytest.mark.parametrize(
    "wrap",
    [lambda t: t, lambda t: (t, None), lambda t: OrderedDict(loss=t.sum(), logits=t), lambda t: {"out": t}],
)
def test_inputs_and_outputs_may_be_nested(batch: Any, wrap: Any) -> None:
    def model(x: Tensor, y: Tensor | None = None) -> Any:
        return wrap(x)

    assert top1([batch])(model).tolist() == [1.0, 1.0, 0.0]


def test_a_loader_is_read_again_and_a_generator_is_refused() -> None:
    metric = top1(DataLoader(TensorDataset(OUTPUTS, TARGETS), batch_size=2))
    assert torch.equal(metric(nn.Identity()), metric(nn.Identity()))
    with pytest.raises(InputError, match="only once"):
        top1((OUTPUTS, TARGETS) for _ in range(2))(nn.Identity())


def test_dense_targets_score_the_share_of_places() -> None:
    output = torch.zeros(1, 3, 2, 2)
    output[0, 2] = 1.0
    assert top1([(output, torch.tensor([[[2, 2], [2, 0]]]))])(nn.Identity()).tolist() == [0.75]


def test_squared_error_is_the_mean_over_elements() -> None:
    scores = squared_error([(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))])
    assert scores(nn.Identity()).tolist() == [2.0, 0.5]


def test_a_module_runs_in_eval_mode_without_gradients_and_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.9))
    model[0].eval()
    metric = top1([(OUTPUTS, TARGETS)])
    assert torch.equal(metric(model), metric(model))
    assert [part.training for part in model.modules()] == [True, False, True, True]
    assert int(model[1].num_batches_tracked) == 0


def test_an_output_of_nan_is_wrong_and_has_no_squared_error() -> None:
    def broken(x: Tensor) -> Tensor:
        return x * math.nan

    assert top1([(OUTPUTS, torch.zeros(3, dtype=torch.long))])(broken).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(MeasureError, match="not finite"):
        squared_error([(OUTPUTS, OUTPUTS)])(broken)


def test_cluster_labels_are_kept_beside_the_scores() -> None:
    assert top1([(OUTPUTS, TARGETS)], clusters=torch.tensor([4, 4, 5])).clusters == (4, 4, 5)
    with pytest.raises(InputError, match="2 cluster labels for 3 samples"):
        top1([(OUTPUTS, TARGETS)], clusters=["a", "b"])(nn.Identity())


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (top1([]), "top1: there are no samples"),
        (top1([(OUTPUTS[:0], TARGETS[:0])]), "top1: batch 0: the batch is empty"),
        (top1([(OUTPUTS, TARGETS), (OUTPUTS * math.nan, TARGETS)]), "top1: batch 1: the data contain NaN"),
        (top1([(OUTPUTS, TARGETS[:2])]), "3 outputs for 2 targets"),
        (top1([(OUTPUTS, OUTPUTS)]), r"outputs \[3, 2\], targets \[3, 2\]"),
        (top1([OUTPUTS]), "a batch is a pair"),
        (top1([{"x": OUTPUTS}]), "the target is not a tensor"),
        (squared_error([(OUTPUTS, OUTPUTS[:, :1])]), r"outputs \[3, 2\], targets \[3, 1\]"),
    ],
)
def test_unusable_data_are_refused(metric: Metric, words: str) -> None:
    with pytest.raises(InputError, match=words):
        metric(nn.Identity())


def test_an_output_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(InputError, match="the model returned str"):
        top1([(OUTPUTS, TARGETS)])(lambda x: "cat")


def test_anyone_can_write_a_metric() -> None:
    metric = Metric("margin", True, [(OUTPUTS, TARGETS)], lambda output, target: output[:, 0] - output[:, 1])
    assert metric(nn.Identity()).tolist() == pytest.approx([0.8, -0.6, 0.2])
