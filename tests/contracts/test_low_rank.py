"""Weights of low rank: how near they are, what training does to them, which ranks and layers are chosen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from compared import close
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings import Float16, Int, LowRank
from lilliput.engine.run import Driver
from lilliput.engine.store import Store
from lilliput.errors import EncodingError, RecipeError
from lilliput.file.container import Reader
from lilliput.measure import macs
from lilliput.model.carrier.parameters import encoding_of, read
from lilliput.model.views.inputs import Inputs, dynamic_axes
from lilliput.techniques.factorize import nearest_for
from lilliput.techniques.forms import keeping
from lilliput.techniques.technique import Technique


@pytest.mark.parametrize("shape", [(12, 8), (6, 4, 3, 3), (5, 40)], ids=str)
def test_a_product_is_the_nearest_of_its_rank(shape: tuple[int, ...]) -> None:
    """What is left is what the smaller singular values hold (Eckart and Young), and both factors are of one size."""
    torch.manual_seed(3)
    x = torch.randn(shape)
    values = torch.linalg.svdvals(x.flatten(1))
    for rank in (1, 3):
        encoded = LowRank(rank).represent(x)
        left, right = (encoded.decoded_parts()[name].flatten(1) for name in ("left", "right"))
        close((encoded.decode() - x).square().sum(), values[rank:].square().sum(), rtol=1e-4, atol=1e-4)
        close(left.norm(dim=0), right.norm(dim=1), rtol=1e-4)
    whole = min(shape[0], math.prod(shape[1:]))
    close(LowRank(whole).represent(x).decode(), x, atol=1e-5)


def test_a_product_follows_a_tensor_that_moves() -> None:
    """As training moves it: nearly as near as a product that is fitted anew, with both factors moved."""
    torch.manual_seed(4)
    x = torch.randn(16, 24)
    frozen = LowRank(4).represent(x)
    moved = frozen.decode() + 0.1 * torch.randn(16, 24)
    followed = LowRank(4).project(moved, frozen)
    best = LowRank(4).represent(moved).decode()
    left = torch.linalg.matrix_rank(followed.double(), rtol=1e-5)
    assert int(left) == 4
    assert float((followed - moved).norm()) <= 1.01 * float((best - moved).norm())
    assert float((followed - frozen.decode()).norm()) > 0.3 * float((moved - frozen.decode()).norm())


def test_gradients_reach_both_factors() -> None:
    left, right = torch.randn(5, 2, 1, 1, dtype=torch.float32), torch.randn(2, 3, 2, 2)
    given = [x.clone().requires_grad_() for x in (left, right)]
    plain = [x.clone().requires_grad_() for x in (left, right)]
    weight = torch.randn(5, 3, 2, 2)
    (torch.ops.lilliput.decode_low_rank(*given) * weight).sum().backward()
    (torch.einsum("or,rikl->oikl", plain[0][..., 0, 0], plain[1]) * weight).sum().backward()
    for ours, theirs in zip(given, plain, strict=True):
        close(ours.grad, theirs.grad, rtol=1e-5)
    torch.library.opcheck(torch.ops.lilliput.decode_low_rank, (left.requires_grad_(), right.requires_grad_()))


# the technique


class Net(nn.Module):
    """Layers of every kind that a rank may be chosen for, and of some kinds that it may not."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.conv = nn.Conv2d(3, 16, 5), nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.groups, self.up = nn.Conv2d(24, 24, 3, groups=4), nn.ConvTranspose2d(24, 16, 2)
        self.body, self.few = nn.Linear(16, 48), nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(torch.relu(self.wide(x)))))
        x = torch.relu(self.up(torch.relu(self.groups(x)))).mean((2, 3))
        return self.few(torch.relu(self.body(x)))  # type: ignore[no-any-return]


def driven(steps: list[Technique], net: nn.Module | None = None, x: Tensor | None = None) -> Driver:
    torch.manual_seed(0)
    example = Inputs.of(torch.randn(2, 3, 20, 20) if x is None else x)
    driver = Driver.start(
        (net or Net()).eval(),
        example=example,
        dynamic=dynamic_axes(example, None),
        calibrate=None,
        target=lp.targets.OnnxRuntime(threads=1),
        store=Store(),
        environment="",
    )
    for step in steps:
        step.apply(driver)
    return driver


def test_every_layer_is_factorized_or_listed_with_the_reason() -> None:
    driver = driven([lp.techniques.Factorize(8, where=("*", "!body"))])
    told = driver.told.skipped
    assert {path: encoding_of(driver.model, f"{path}.weight") for path in ("wide", "conv")} == {
        "wide": LowRank(8),
        "conv": LowRank(8),
    }
    assert "groups" in told["groups.weight"] and "conv_transpose2d" in told["up.weight"]
    assert "no smaller" in told["few.weight"] and "2 × 8 and 8 × 48" in told["few.weight"]
    assert "where=" in told["body.weight"]
    assert len(told) == 4


def test_each_way_to_say_how_far_gives_the_ranks_that_it_says() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(96, 80), nn.Linear(80, 96), nn.Conv1d(96, 8, 3))
    net[1].weight.data = torch.randn(96, 30) @ torch.randn(30, 80) + 0.1 * torch.randn(96, 80)
    x = torch.randn(96, 96)
    for multiple in (1, 8):
        kept, cut = (
            driven([step], net, x)
            for step in (
                lp.techniques.Factorize(energy=0.9, multiple=multiple),
                lp.techniques.Factorize(amount=0.6, multiple=multiple),
            )
        )
        for path in ("0.weight", "1.weight", "2.weight"):
            weight = net.get_parameter(path).detach().flatten(1)
            (outputs, inputs), found, half = weight.shape, encoding_of(kept.model, path), encoding_of(cut.model, path)
            assert isinstance(half, LowRank)
            most = 0.4 * weight.numel()
            step = multiple if half.rank >= 2 * multiple else 1
            assert half.rank % step == 0 and half.rank * (outputs + inputs) <= most
            assert most < (half.rank + step) * (outputs + inputs)
            squares = torch.linalg.svdvals(weight).square().cumsum(0)
            needed = int((squares < 0.9 * squares[-1]).sum()) + 1
            wanted = needed if needed < 2 * multiple else math.ceil(needed / multiple) * multiple
            small = wanted * (outputs + inputs) < weight.numel()
            assert found == (LowRank(wanted) if small else None) and (path in kept.told.skipped) is not small
    assert encoding_of(kept.model, "1.weight") is not None and encoding_of(kept.model, "0.weight") is None


def test_the_rank_that_keeps_energy_is_the_least() -> None:
    x = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    found = [keeping("product", x, energy) for energy in (0.5, 0.64, 0.65, 0.9, 0.93, 0.999)]
    assert found == [(1,), (1,), (2,), (2,), (3,), (3,)]
    assert keeping("product", torch.zeros(3, 4), 0.5) == (1,)


def test_a_later_format_is_that_of_the_factors() -> None:
    first = driven([lp.techniques.Factorize(8)])
    lp.Quantize(weights=Int(8)).apply(first)
    held = encoding_of(first.model, "conv.weight")
    assert isinstance(held, LowRank) and held.rank == 8 and isinstance(held.factors, Int) and held.factors.bits == 8
    exact, rounded = (read(one.model, "conv.weight") for one in (driven([lp.techniques.Factorize(8)]), first))
    assert 0 < float((rounded - exact).norm()) < 0.02 * float(exact.norm())
    grouped = driven([lp.techniques.Factorize(8), lp.Quantize(weights=Int(4, group=32))])
    inner = encoding_of(grouped.model, "conv.weight")
    assert isinstance(inner, LowRank) and isinstance(inner.factors, Int) and inner.factors.group == 8  # divides both
    again = driven(
        [
            lp.techniques.Factorize(8),
            lp.Quantize(weights=Float16(), where="conv"),
            lp.techniques.Factorize(4, where="conv"),
        ]
    )
    assert encoding_of(again.model, "conv.weight") == LowRank(4)


def test_what_is_encoded_or_pruned_is_told() -> None:
    driver = driven([lp.Prune("weights", 0.5), lp.techniques.Factorize(8)])
    assert "factorize before that" in driver.told.skipped["conv.weight"]
    with pytest.raises(EncodingError, match=r"zeros around LowRank\(rank=8\).*!wide"):
        driven([lp.techniques.Factorize(8), lp.Prune("weights", 0.5)])


def test_products_are_counted_as_they_are_computed() -> None:
    x = torch.randn(2, 3, 20, 20)
    before, after = (macs(driven(steps).model, (x,)) for steps in ([], [lp.techniques.Factorize(4)]))
    sizes = {"wide": (16, 75), "conv": (24, 144), "body": (48, 16)}
    for path, (outputs, inputs) in sizes.items():
        assert after.by_module[path] * outputs * inputs == before.by_module[path] * 4 * (outputs + inputs)
    assert all(after.by_module[path] == before.by_module[path] for path in ("groups", "up", "few"))
    assert before.total - after.total == sum(before.by_module[path] - after.by_module[path] for path in sizes)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({}, "one of rank=, energy=, amount="),
        ({"rank": 4, "energy": 0.5}, "one of"),
        ({"energy": 1.0}, "between 0 and 1"),
        ({"amount": 0.0}, "between 0 and 1"),
        ({"amount": 0.5, "multiple": 0}, "1 or more"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        lp.techniques.Factorize(**given)
    assert hint in caught.value.next


def test_a_file_holds_the_factors_and_the_graph_takes_them(tmp_path: Path) -> None:
    """With a recipe from text; nothing of a size is in the file twice."""
    net, xs = Net().eval(), [torch.randn(2, 3, 20, 20) for _ in range(2)]
    recipe = lp.Recipe.from_toml(lp.Recipe([lp.techniques.Factorize(6), lp.Quantize(weights=Float16())]).to_toml())
    result = lp.compress(
        lp.Task(net, xs[0], evaluate=xs), recipe, folder=tmp_path, target=lp.targets.OnnxRuntime(threads=1)
    )
    file = tmp_path / "net.lil"
    expected = result.model(xs[0]).detach()
    close(lp.load(file, Net()).eval()(xs[0]).detach(), expected, rtol=0, atol=0)
    close(lp.open(file, threads=1)(xs[0]), expected, atol=1e-4 * float(expected.abs().max()))
    held = encoding_of(result.model, "conv.weight")
    assert held == LowRank(6, Float16())
    row = next(row for row in result.data["layers"] if row["path"] == "conv.weight")
    assert row["nominal_bits"] * 24 * 144 == 16 * 6 * (24 + 144)
    assert row["runs_as"] == "two float products in place of one" and row["encoding"] == "rank 6 of float16"
    assert result.data["after"]["macs"] < result.data["before"]["macs"]
    stored = Reader(file).entries
    assert not [name for name in stored if name.startswith(":graph:")]


def apart(net: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((net(x) - other(x)).norm() / net(x).norm())


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_by_inputs_answers_are_nearer_though_weights_are_farther(kind: str) -> None:
    """Inputs of a few strong directions: on more of them, not seen before, it errs much less."""
    torch.manual_seed(0)
    net: nn.Module
    if kind == "linear":
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
        mix = torch.randn(64, 64) * torch.logspace(0.5, -2, 64)
        batches = [torch.randn(64, 64) @ mix.T for _ in range(9)]
    else:
        net = nn.Sequential(nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
        mix = torch.randn(8, 8) * torch.logspace(0.5, -2, 8)
        batches = [torch.einsum("nchw,dc->ndhw", torch.randn(8, 8, 9, 9), mix) for _ in range(9)]
    task = lp.Task(net, calibrate=batches[:8])
    plain, seen = (lp.apply(task, lp.Recipe([lp.techniques.Factorize(8, by=by)])) for by in ("weights", "inputs"))
    assert apart(net, seen, batches[8]) < 0.7 * apart(net, plain, batches[8])
    exact = net[0].weight.detach()  # type: ignore[index,union-attr]
    errors = [float((one[0].weight - exact).norm()) for one in (plain, seen)]  # type: ignore[index,union-attr,operator]
    assert errors[0] < errors[1]
    assert all(encoding_of(seen, f"{i}.weight") == lp.formats.LowRank(8) for i in (0, 2))


def test_the_nearest_for_inputs_leaves_the_least_that_can_be() -> None:
    """The singular values that were cut off, of the weights as the inputs see them, are all that is lost."""
    torch.manual_seed(0)
    x, root = torch.randn(12, 9), torch.randn(9, 9)
    gram = root @ root.T
    found = nearest_for(x, gram, 4).double()
    damped = gram.double() + 0.01 * gram.diagonal().double().mean() * torch.eye(9)
    lost = ((x - found) @ damped @ (x - found).T).diagonal().sum()
    values = torch.linalg.svdvals(x.double() @ torch.linalg.cholesky(damped))
    close(float(lost), float(values[4:].square().sum()), rtol=1e-4)
    assert int(torch.linalg.matrix_rank(found, rtol=1e-5)) == 4


def test_by_inputs_wants_batches() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    with pytest.raises(lp.errors.LilliputError, match='by="weights"'):
        lp.apply(lp.Task(net, example=torch.randn(2, 64)), lp.Recipe([lp.techniques.Factorize(8, by="inputs")]))
    with pytest.raises(lp.errors.LilliputError, match="did you mean 'inputs'"):
        lp.techniques.Factorize(8, by="input")  # type: ignore[arg-type]
