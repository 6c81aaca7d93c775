"""Encodings that learn: scales, offsets and levels are trained with the numbers, and are stored as they were seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings import ENCODINGS, Encoding
from lilliput.errors import RecipeError
from lilliput.model.carrier.carrier import encoded_tensors, freeze, unfreeze
from lilliput.model.views.values import attach_value, value_encodings

ORT = lp.targets.OnnxRuntime(threads=1, seconds=0)
PARAMETERS = ("scale", "levels", "offset", "minimum")
WEIGHTS: list[Encoding] = [
    lp.Int(3, per="channel", symmetric=True),
    lp.Int(4, group=8, symmetric=True),
    lp.Int(4, group=8, symmetric=False),
    lp.Int(2, per="tensor", symmetric=True, scale=lp.formats.Float16()),
    lp.Int(4, group=4, scale=lp.Int(6, group=2), symmetric=True),
    lp.Int(4, group=4, symmetric=False, minimum=lp.formats.Float16()),
    lp.Int(4, group=4, scale=lp.Int(6, group=2), symmetric=False, minimum=lp.Int(6, group=2)),
    lp.formats.Codebook(6),
    lp.formats.Codebook(4, per="channel", zero=False),
    lp.formats.Codebook(5, group=8, held=lp.formats.Float16()),
    lp.formats.PowerOfTwo(3),
    lp.formats.Signs(3),
    lp.formats.NF4(group=8),
    lp.formats.MiniFloat("e2m1"),
]


def weight() -> Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(3))


def learning(encoding: Encoding, x: Tensor) -> dict[str, Tensor]:
    parts = encoding.represent(x).decoded_parts()
    return {name: parts[name].float().clone().requires_grad_() for name in encoding.learnable if name in parts}


@pytest.mark.parametrize("encoding", WEIGHTS, ids=repr)
def test_what_is_seen_in_training_is_what_is_stored(encoding: Encoding) -> None:
    layer = nn.Linear(16, 6, bias=False)
    layer.weight.data = weight()
    net = lp.apply(lp.Task(nn.Sequential(layer), example=torch.randn(2, 16)), lp.Recipe([lp.Quantize(encoding)]))
    before = net[0].weight.detach().clone()  # type: ignore[index,union-attr]
    unfreeze(net, learn=True)
    held = dict(net.named_parameters())
    assert any("learnt_" in name for name in held), held.keys()
    close(net[0].weight, before)  # type: ignore[index,union-attr]
    shaken = torch.Generator().manual_seed(4)
    for p in held.values():
        p.data += 0.05 * p.data.abs().max() * torch.randn(p.shape, generator=shaken)
    seen = net[0].weight.detach().clone()  # type: ignore[index,union-attr]
    freeze(net)
    assert torch.equal(net[0].weight, seen) and not torch.equal(seen, before)  # type: ignore[index,union-attr]
    assert not any("learnt_" in name for name, _ in net.named_parameters())
    (_, encoded), *_ = encoded_tensors(net)
    encoded.encoding.check_parts(tuple(seen.shape), encoded.encoded().parts)


def test_a_scale_has_the_gradient_of_lsq() -> None:
    encoding, x = lp.Int(3, per="channel", symmetric=True), weight()
    parts = learning(encoding, x)
    parts["scale"].data *= 0.6  # so that some are cut
    x.requires_grad_()
    given = torch.randn(6, 16, generator=torch.Generator().manual_seed(5))
    encoding.learn(x, parts, 16).backward(given)  # type: ignore[no-untyped-call]
    steps = x.detach() / parts["scale"].detach()[:, None]
    inside = steps.abs() <= 3
    by_step = torch.where(inside, steps.round() - steps, 3 * steps.sign())
    assert 0 < int((~inside).sum()) < 30
    assert parts["scale"].grad is not None and x.grad is not None
    close(parts["scale"].grad, (given * by_step).sum(1) / (16 * 3) ** 0.5)
    close(x.grad, given * inside)


def test_an_offset_learns_from_what_is_cut() -> None:
    encoding, x = lp.Int(2, symmetric=False, per="tensor"), weight()
    parts = {"scale": torch.tensor(0.5, requires_grad=True), "offset": torch.tensor(1.0, requires_grad=True)}
    x.requires_grad_()
    encoding.learn(x, parts, 1).sum().backward()  # type: ignore[no-untyped-call]
    cut = (x.detach() / 0.5 + 1).clamp(0, 3) != x.detach() / 0.5 + 1
    assert parts["offset"].grad is not None
    close(float(parts["offset"].grad), float(-0.5 * cut.sum() / 3**0.5))


def test_each_level_has_the_sum_of_the_gradients_of_its_weights() -> None:
    encoding, x = lp.formats.Codebook(4, zero=False), weight()
    parts = learning(encoding, x)
    codes = encoding.represent(x).parts["codes"]
    given = torch.randn(6, 16, generator=torch.Generator().manual_seed(5))
    encoding.learn(x, parts, 1).backward(given)  # type: ignore[no-untyped-call]
    assert isinstance(codes, Tensor) and parts["levels"].grad is not None
    close(parts["levels"].grad, torch.stack([given[codes == i].sum() for i in range(4)]))


@pytest.mark.parametrize("encoding", [*WEIGHTS, lp.formats.Blockwise(4, channels=2, group=8)], ids=repr)
def test_decoding_has_a_gradient(encoding: Encoding) -> None:
    """A training loop of the user's own may learn through it."""
    parts = encoding.represent(weight()).decoded_parts()
    learnt = {name: p.double().requires_grad_() for name, p in parts.items() if name in PARAMETERS}

    def decoded(*given: Tensor) -> Tensor:
        return encoding.decode({**parts, **dict(zip(learnt, given, strict=True))})

    assert torch.autograd.gradcheck(decoded, tuple(learnt.values()), eps=1e-4, atol=1e-6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))  # type: ignore[no-any-return]


def task() -> lp.Task:
    torch.manual_seed(0)
    teacher, batches = Net().eval(), [torch.randn(16, 3, 12, 12) for _ in range(12)]
    for p in teacher.parameters():
        p.data *= 2
    train = [(x, teacher(x).detach()) for x in batches]
    return lp.Task(teacher, example=batches[0], calibrate=batches[:2], train=train, loss=error)


def error(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("weights", "values"),
    [(lp.Int(3), None), (lp.Int(3), lp.Int(8)), (lp.Int(3, group=16), lp.Int(4))],
    ids=repr,
)
def test_coarse_ranges_recover_and_what_was_learnt_is_what_is_built(weights: Encoding, values: Encoding | None) -> None:
    """One far weight a channel makes all steps coarse, which training of the weights alone cannot mend."""
    quantize = lp.Quantize(weights=weights, activations=values, fit=lp.ranges.MinMax(), calibration=lp.ranges.MinMax())
    fixed, learnt = (loss_after(quantize, learn=learn) for learn in (False, True))
    assert learnt < 0.8 * fixed, (learnt, fixed)


def loss_after(quantize: lp.Quantize, *, learn: bool) -> float:
    step = lp.Finetune(epochs=8, lr=0.05, optimizer="SGD", momentum=0.9, schedule="cosine", learn_encodings=learn)
    given = task()
    with torch.no_grad():
        for name in ("a", "b", "c"):
            rows = given.model.get_parameter(f"{name}.weight").flatten(1)
            rows[:, 0] = 4 * rows.abs().amax(1)
        given = replace(given, train=[(x, given.model(x)) for x, _ in given.train])  # type: ignore[union-attr]
    recipe = lp.Recipe([quantize, step])
    # what is built is held against the module there
    net = lp.compress(given, recipe, target=ORT).model if learn else lp.apply(given, recipe, target=ORT)
    with torch.no_grad():
        return sum(float(error(net, batch)) for batch in given.train) / 12  # type: ignore[union-attr]


def test_values_that_flow_learn_too() -> None:
    net = Net()
    attach_value(net, "b:conv2d#0@0", lp.Int(3, symmetric=False, per="tensor"), {
        "scale": torch.tensor(0.1), "offset": torch.tensor(2, dtype=torch.uint8),
    })  # fmt: skip
    x = torch.randn(4, 3, 12, 12)
    before = net(x)
    unfreeze(net, learn=True)
    close(net(x), before)
    net(x).square().sum().backward()
    (encoder,) = value_encodings(net).values()
    grads = {name: p.grad for name, p in encoder.named_parameters()}
    assert grads.keys() == {"learnt_scale", "learnt_offset"}
    assert all(g is not None and float(g.abs()) > 0 for g in grads.values())
    for p in encoder.parameters():
        p.data *= 1.3
    seen = net(x)
    freeze(net)
    assert torch.equal(net(x), seen) and encoder.parameters_of_value()["offset"].dtype == torch.uint8


def test_it_goes_with_zeros_that_stay() -> None:
    steps = [lp.Prune("weights", 0.5), lp.Quantize(lp.Int(4)), lp.Finetune(epochs=1, lr=1e-2, learn_encodings=True)]
    net = lp.apply(task(), lp.Recipe(steps), target=ORT)
    assert float((net.b.weight == 0).float().mean()) >= 0.5  # type: ignore[union-attr,operator]


def test_scales_do_not_decay() -> None:
    quantize, decayed = lp.Quantize(lp.Int(8)), []
    for decay in (0.0, 0.5):
        step = lp.Finetune(epochs=1, lr=1e-9, optimizer="SGD", weight_decay=decay, learn_encodings=True)
        net = lp.apply(task(), lp.Recipe([quantize, step]), target=ORT)
        decayed.append(net.get_buffer("b.weight_encoded.scale"))
    close(decayed[0], decayed[1])


def test_shards_are_refused() -> None:
    with pytest.raises(RecipeError, match="learnt in shards"):
        lp.Finetune(learn_encodings=True, shard=True)


def test_every_encoding_says_what_it_learns() -> None:
    told = {name: kind.learnable for name, kind in ENCODINGS.items() if name != "Sparse"}
    assert told["Int"] == ("scale", "offset", "minimum") and told["Codebook"] == ("levels",) and told["Fixed"] == ()
    assert all(isinstance(one, tuple) for one in told.values())
