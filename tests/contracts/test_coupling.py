"""What can only be removed together, on networks small enough to know the answer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.model.edits.edit import structure
from lilliput.model.edits.structure import Resize, SetNumber
from lilliput.model.surgery.coupling import Coupling, Group, Shrinking, coupling
from lilliput.model.surgery.coupling.atoms import Atoms
from lilliput.model.views.inputs import Inputs


class Residual(nn.Module):
    """Two layers whose sum couples them, and one whose outputs are the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.inner, self.out = nn.Linear(5, 8), nn.Linear(12, 8), nn.Linear(8, 12), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.out(x + self.b(F.relu(self.inner(x))))  # type: ignore[no-any-return]


class Literal(nn.Module):
    """A width that stands in the source."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.free = nn.Linear(5, 8), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.free(self.b(self.a(x).view(-1, 2, 4)).mean(1))  # type: ignore[no-any-return]


class Slopes(nn.Module):
    """Attention whose heads are told apart by a slope that follows from their number."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.out = nn.Linear(6, 3 * 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        slopes = 2.0 ** -torch.arange(1, self.heads + 1).view(-1, 1, 1) * (torch.arange(x.shape[1]) % 3)
        mixed = torch.softmax(q @ k.transpose(-1, -2) + slopes, -1) @ v
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))  # type: ignore[no-any-return]


def found(net: nn.Module, *inputs: Tensor) -> Coupling:
    return coupling(net.eval(), Inputs.of(inputs))


def places(group: Group) -> dict[str, int]:
    """The members of a group with the positions that one slice has along each."""
    return {f"{member.path}[{member.axis}]": len(member.positions[0]) for member in group.members}


def test_a_residual_sum_couples_what_it_adds() -> None:
    groups = {group.size: places(group) for group in found(Residual(), torch.randn(2, 5)).groups}
    assert set(groups) == {8, 12}
    assert set(groups[8]) == {
        "a.weight[0]",
        "a.bias[0]",
        "b.weight[0]",
        "b.bias[0]",
        "inner.weight[1]",
        "out.weight[1]",
    }
    assert set(groups[12]) == {"inner.weight[0]", "inner.bias[0]", "b.weight[1]"}


def test_inputs_and_outputs_are_protected_with_the_reason() -> None:
    protected = found(Residual(), torch.randn(2, 5)).protected
    assert protected["a.weight[1]"] == "an axis of an input"
    assert protected["out.weight[0]"] == protected["out.bias[0]"] == "an axis of what the model returns"


def test_a_flattened_channel_takes_all_its_positions() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4))
    (group,) = found(net, torch.randn(2, 3, 6, 6)).groups
    assert places(group)["4.weight[1]"] == 16
    assert places(group)["1.running_mean[0]"] == 1


def test_parts_of_a_concatenation_are_groups_of_their_own() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(5, 4), nn.Linear(5, 6), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([self.a(x), self.b(x)], -1))  # type: ignore[no-any-return]

    first, second = sorted(found(Joined(), torch.randn(2, 5)).groups, key=lambda group: group.size)
    assert (first.size, second.size) == (4, 6)
    columns = [set(np.concatenate(group.members[-1].positions)) for group in (first, second)]
    assert columns == [set(range(4)), set(range(4, 10))]


def test_heads_and_their_widths_are_told_apart() -> None:
    net = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
    groups = found(nn.Sequential(nn.Linear(5, 12), net, nn.Linear(12, 4)), torch.randn(2, 6, 5)).groups
    assert sorted((group.size, group.heads) for group in groups) == [(3, True), (4, False), (12, False), (20, False)]


def test_what_no_rule_knows_is_protected_with_the_line_of_the_source() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.sort(self.a(x), -1)[0])  # type: ignore[no-any-return]

    coupled = found(Sorted(), torch.randn(2, 5))
    assert not coupled.groups
    assert "sort" in coupled.protected["a.weight[0]"] and "test_coupling.py" in coupled.protected["a.weight[0]"]


def test_a_literal_in_the_source_is_refused_and_nothing_else() -> None:
    net, x = Literal().eval(), torch.randn(2, 5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    coupled = found(net, x)
    shrinking = Shrinking(net, coupled, Inputs.of(x))
    going = {group: group.atoms[::2] for group in coupled.groups}
    refused = {group.size: why for group, why in shrinking.refused(going).items()}
    assert set(refused) == {2, 4}
    assert all("return self.free(self.b(self.a(x).view(-1, 2, 4)).mean(1))" in why for why in refused.values())
    assert not structure(net)
    close(net.state_dict(), before, rtol=0, atol=0)


def test_heads_that_compute_by_their_number_are_refused() -> None:
    net, x = Slopes().eval(), torch.randn(2, 5, 6)
    coupled = found(net, x)
    (heads,) = (group for group in coupled.groups if group.heads)
    (why,) = Shrinking(net, coupled, Inputs.of(x)).refused({heads: heads.atoms[:2]}).values()
    assert "computes something else than with the slices set to zero" in why


def test_an_attribute_follows_its_axis_and_others_of_the_same_number_do_not() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.steps = 4, 4
            self.a, self.out = nn.Linear(5, 8), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).view(x.shape[0], -1, self.width)
            return self.out(y) * sum(1 / (i + 1) for i in range(self.steps))  # type: ignore[no-any-return]

    net, x = Viewed().eval(), torch.randn(2, 5)
    coupled = found(net, x)
    (group,) = (group for group in coupled.groups if "out.weight[1]" in places(group))
    shrinking = Shrinking(net, coupled, Inputs.of(x))
    assert not shrinking.refused({group: group.atoms[:1]})
    edits = [edit for edit, _ in shrinking.checked(group.atoms[:1])]
    numbers = {(edit.module, edit.name): edit.value for edit in edits if isinstance(edit, SetNumber)}
    assert numbers[("", "width")] == (3,) and ("", "steps") not in numbers
    assert {edit.shape for edit in edits if isinstance(edit, Resize)} == {(6, 5), (6,), (3, 3)}


def test_a_network_that_draws_random_numbers_is_compared_with_the_same_ones() -> None:
    class Sampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.mean, self.decode, self.out = (nn.Linear(*n) for n in ((5, 8), (8, 4), (4, 12), (12, 5)))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mean = self.mean(torch.relu(self.encode(x)))
            return self.out(torch.relu(self.decode(mean + torch.randn_like(mean)))), mean

    net, x = Sampling().eval(), torch.randn(2, 5)
    coupled = found(net, x)
    going = {group: group.atoms[::2] for group in coupled.groups}
    before = torch.get_rng_state()
    assert len(going) == 2 and not Shrinking(net, coupled, Inputs.of(x)).refused(going)
    assert torch.equal(before, torch.get_rng_state())


class Spelt(nn.Module):
    """An RMS norm as transformers writes it; with gains of 1 + its weight, as Gemma has them."""

    def __init__(self, plus: bool) -> None:
        super().__init__()
        self.weight, self.plus = nn.Parameter(torch.rand(8) + 0.5), plus

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (1 + self.weight) * wide if self.plus else self.weight * wide.to(x.dtype)


@pytest.mark.parametrize("norm", ["torch", "spelt", "plus"])
def test_an_rms_norm_keeps_its_divisor(norm: str) -> None:
    torch.manual_seed(0)
    norms = {"torch": nn.RMSNorm(8, eps=1e-6), "spelt": Spelt(False), "plus": Spelt(True)}
    net, x = nn.Sequential(nn.Linear(5, 8), norms[norm], nn.Linear(8, 3)).eval(), torch.randn(4, 5)
    nn.init.uniform_(net[1].weight, 0.5, 1.5)
    coupled = found(net, x)
    (group,) = coupled.groups
    shrinking, small = Shrinking(net, coupled, Inputs.of(x)), copy.deepcopy(net)
    assert not shrinking.refused({group: group.atoms[::2]})
    for edit, given in shrinking.checked(group.atoms[::2]):
        edit.apply(small, given)
    net[0].weight.data[::2], net[0].bias.data[::2] = 0, 0
    if norm == "plus":
        assert shrinking.not_rescaled(group.atoms[::2]) == {"1"}
        assert torch.equal(small[1].weight, net[1].weight[1::2])
    else:
        assert not shrinking.not_rescaled(group.atoms[::2])
        close(small(x), net(x))
        close(small[1].weight, net[1].weight[1::2] * 2**0.5)


def test_the_gains_of_a_layer_norm_are_scaled_by_width_and_its_bias_is_not() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval(), torch.randn(4, 5)
    nn.init.uniform_(net[1].bias, 0.5, 1.5)
    coupled = found(net, x)
    (group,) = coupled.groups
    small = copy.deepcopy(net)
    for edit, given in Shrinking(net, coupled, Inputs.of(x)).checked(group.atoms[::2]):
        edit.apply(small, given)
    close(small[1].weight, net[1].weight[1::2] * 2**0.5)
    assert torch.equal(small[1].bias, net[1].bias[1::2])


def test_attention_keeps_its_scale() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(5, 8) for _ in range(4))
            self.out = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net, x = Attention().eval(), torch.randn(2, 6, 5)
    coupled = found(net, x)
    (group,) = (group for group in coupled.groups if "k.weight[0]" in places(group))
    shrinking = Shrinking(net, coupled, Inputs.of(x))
    small = Attention().eval()
    for edit, given in shrinking.checked(group.atoms[::2]):
        edit.apply(small, given)
    for name, value in net.state_dict().items():
        if name[0] in "vo":
            small.state_dict()[name].copy_(value)
    for layer in (net.q, net.k):
        layer.weight.data[::2], layer.bias.data[::2] = 0, 0
    assert small.q.weight.shape == (4, 5)
    close(small(x), net(x))


@pytest.mark.parametrize("seed", range(20))
def test_atoms_never_free_what_was_kept_nor_part_what_was_joined(seed: int) -> None:
    draw = np.random.default_rng(seed)
    atoms = Atoms()
    axes = [atoms.new(24) for _ in range(4)]
    joined, kept = list[tuple[int, int]](), set[int]()
    for _ in range(8):
        i, j = map(int, draw.integers(len(axes), size=2))
        match draw.integers(3):
            case 0:
                atoms.join(axes[i], axes[j])
                joined.append((i, j))
            case 1:
                outer = int(draw.choice([2, 3, 4, 6]))
                again = atoms.compound(*atoms.split(axes[i], outer, 24 // outer))
                assert [_free(atoms, x) for x in again] == [_free(atoms, x) for x in axes[i]]
            case 2:
                atoms.keep(axes[i], "for the test")
                kept.add(i)
        for a, b in joined:
            assert np.array_equal(atoms.parts(axes[a]), atoms.parts(axes[b]))
        for a in kept:
            assert not atoms.can_go(axes[a]).any()
    free = sorted({int(x) for axis in axes for x in atoms.parts(axis).ravel() if x >= 0 and not atoms.why_kept(int(x))})
    gone = np.array(free[: len(free) // 2], np.int64)
    for a in kept:
        assert atoms.left(axes[a], gone).all()


def _free(atoms: Atoms, atom: int) -> set[int]:
    """The atoms by which a position can go."""
    return {int(x) for x in atoms.parts(np.array([atom]))[0] if x >= 0 and not atoms.why_kept(int(x))}
