"""A module that carries encodings is an ordinary module of its own class."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.func import functional_call

from lilliput.encodings import BFloat16, Encoding, Float16, Int, Sparse
from lilliput.errors import EncodingError
from lilliput.model.carrier.carrier import (
    attach,
    encoded_tensors,
    freeze,
    owner_of,
    plain_class,
    tensors,
    to_dense,
    unfreeze,
)
from lilliput.model.carrier.parametrized import fold_parametrizations

if TYPE_CHECKING:
    from conftest import Carried, Encode, Host

ONE_OF_EACH = [Float16(), Int(4, group=4, symmetric=False, scale=Float16()), Sparse(Int(8))]
HOST_NAMES = ["linear", "conv", "conv_transpose", "embedding", "lstm", "attention", "own_class", "tied"]
EVERY_HOST = [(host, ONE_OF_EACH[i % 3]) for i, host in enumerate(HOST_NAMES)]


def tensor_at(model: nn.Module, path: str) -> Tensor:
    owner, name = owner_of(model, path)
    return getattr(owner, name)  # type: ignore[no-any-return]


def stored(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


def assert_same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        close(a[name], b[name], rtol=0, atol=0)


# what it is


def test_the_type_is_the_hosts_own(carried: Carried) -> None:
    for path, module in carried.dense.named_modules():
        now = carried.model.get_submodule(path)
        assert isinstance(now, type(module)) and plain_class(now) is type(module)
        assert repr(type(now)) == repr(type(module)) and type(now).__doc__ == type(module).__doc__
        assert now.extra_repr() == module.extra_repr() and now._get_name() == module._get_name()


def test_it_computes_what_the_decoded_tensors_do(carried: Carried, same: Any) -> None:
    close(carried.model(carried.x), carried.dense(carried.x))
    with torch.no_grad():  # the same kernels
        same(carried.model(carried.x), carried.dense(carried.x))


def test_modules_of_one_kind_share_one_class(encode: Encode) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    list(encode(model, Int(8)))
    assert type(model[0]) is type(model[1]) is not nn.Linear
    assert "weight" in nn.Linear(4, 4)._parameters


def test_a_tied_tensor_is_encoded_once(carried: Carried) -> None:
    assert [paths for paths, _ in encoded_tensors(carried.model)] == list(carried.encoded)
    for paths, held in encoded_tensors(carried.model):
        assert all(
            owner_of(carried.model, path)[0]._modules[f"{owner_of(carried.model, path)[1]}_encoded"] is held
            for path in paths
        )


def test_a_part_of_a_tied_group_is_not_encoded_alone() -> None:
    embed = nn.Embedding(12, 8)
    model = nn.ModuleDict({"embed": embed, "head": nn.Linear(8, 12, bias=False)})
    model["head"].weight = embed.weight
    with pytest.raises(EncodingError, match="tied") as caught:
        attach(model, ("embed.weight",), Int(8).represent(embed.weight))
    assert "head.weight" in str(caught.value)


def test_encoding_again_replaces(host: Host, encode: Encode) -> None:
    model = host.make().eval()
    list(encode(model, Int(8)))
    for paths, held in list(encoded_tensors(model)):
        attach(model, paths, Int(4).represent(held().detach()))
    assert {held.encoding for _, held in encoded_tensors(model)} == {Int(4)}
    model(host.example())


# copies


def test_a_copy_is_its_own(carried: Carried, same: Any) -> None:
    before, expected = stored(carried.model), carried.model(carried.x)
    other = copy.deepcopy(carried.model)
    same(other(carried.x), expected)
    assert_same_state(stored(other), before)
    for paths, held in encoded_tensors(other):
        held.write(held().detach() * -2)
        attach(other, paths, Int(8).represent(torch.zeros(held.shape)))
    to_dense(other)
    unfreeze(other)
    assert_same_state(stored(carried.model), before)
    same(carried.model(carried.x), expected)


def test_it_can_be_pickled_copied_and_saved(carried: Carried, same: Any) -> None:
    expected = carried.model(carried.x)
    file = io.BytesIO()
    torch.save(carried.model, file)
    file.seek(0)
    for other in (
        pickle.loads(pickle.dumps(carried.model)),
        copy.copy(carried.model),
        torch.load(file, weights_only=False),
    ):
        assert type(other) is type(carried.model)
        assert_same_state(stored(other), stored(carried.model))
        same(other(carried.x), expected)
        assert [paths for paths, _ in encoded_tensors(other)] == list(carried.encoded)


# state


def test_state_is_plain_tensors(carried: Carried, same: Any) -> None:
    carried.model(carried.x)  # running it leaves nothing behind
    state = carried.model.state_dict()
    for x in state.values():
        assert type(x) is Tensor and x.is_contiguous() and not x.requires_grad and not vars(x)
    assert not any(vars(buffer) for buffer in carried.model.buffers())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    other = copy.deepcopy(carried.model)
    for _, held in encoded_tensors(other):
        held.write(torch.randn(held.shape))
    other.load_state_dict(read, strict=True)
    same(other(carried.x), carried.model(carried.x))


def test_state_goes_through_safetensors(host: Host, encode: Encode) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = host.make()
    list(encode(model, Int(4, group=4, scale=Float16())))
    unique = {x.data_ptr(): (name, x) for name, x in model.state_dict().items()}  # it refuses shared memory
    read = safetensors.load(safetensors.save(dict(unique.values())))
    for name, x in unique.values():
        close(read[name], x, rtol=0, atol=0)


def test_a_dense_checkpoint_is_encoded_as_it_comes_in(carried: Carried, same: Any) -> None:
    other = copy.deepcopy(carried.model)
    for _, held in encoded_tensors(other):
        held.write(held().detach() * 3)
    given = carried.dense.state_dict()
    keys = list(given)
    other.load_state_dict(given, strict=True)
    assert list(given) == keys
    for paths in carried.encoded:
        close(tensor_at(other, paths[0]), tensor_at(carried.dense, paths[0]), share=0.02)
    close(other(carried.x), carried.dense(carried.x), share=0.05)


def test_a_checkpoint_of_another_shape_is_refused_as_torch_does(encode: Encode) -> None:
    model = nn.Sequential(nn.Linear(8, 12))
    list(encode(model, Int(8)))
    before = stored(model)
    with pytest.raises(RuntimeError, match=r"0\.weight.*\(12, 9\).*\(12, 8\)"):
        model.load_state_dict(nn.Sequential(nn.Linear(9, 12)).state_dict())
    close(model.state_dict()["0.weight_encoded.codes"], before["0.weight_encoded.codes"])
    with pytest.raises(RuntimeError, match=r"0\.weight_encoded\.codes"):
        model.load_state_dict({"0.bias": torch.zeros(12)}, strict=True)


# assignment


@pytest.mark.parametrize("as_parameter", [False, True])
def test_an_assigned_tensor_is_encoded(carried: Carried, as_parameter: bool) -> None:
    for paths in carried.encoded:
        owner, name = owner_of(carried.model, paths[0])
        held = owner._modules[f"{name}_encoded"]
        zeros = getattr(owner, name).detach() == 0
        value = torch.randn(held.shape)
        setattr(owner, name, nn.Parameter(value) if as_parameter else value)
        assert name not in owner._parameters and name not in vars(owner)
        now = getattr(owner, name).detach()
        expected = value * ~zeros if isinstance(held.encoding, Sparse) else value
        close(now, held.encoding.represent(expected).decode(), rtol=0, atol=0)
    carried.model(carried.x)


@pytest.mark.parametrize("encoding", ONE_OF_EACH, ids=repr)
@pytest.mark.parametrize("trained", [False, True])
def test_a_tie_is_made_by_assignment(encoding: Encoding, trained: bool, encode: Encode) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(12, 8), "head": nn.Linear(8, 12, bias=False)})
    list(encode(model, encoding))
    if trained:
        unfreeze(model)
    model["head"].weight = model["embed"].weight
    assert [paths for paths, _ in encoded_tensors(model)] == [("embed.weight", "head.weight")]
    assert len(list(model.parameters())) == trained  # one latent
    model["head"].weight = model["head"].weight
    assert len(list(encoded_tensors(model))) == 1


@pytest.mark.parametrize("encoding", ONE_OF_EACH, ids=repr)
def test_tie_weights_keeps_the_tie(encoding: Encoding, encode: Encode, tied: type[nn.Module], same: Any) -> None:
    model = tied()
    list(encode(model, encoding))
    x = torch.tensor([[1, 2]])
    expected = model(x)
    model.tie_weights()
    model.head.weight = model.embed.weight
    same(model(x), expected)
    assert ("embed.weight", "head.weight") in [paths for paths, _ in encoded_tensors(model)]
    model.load_state_dict(tied().state_dict())
    same(model.embed.weight, model.head.weight)


def test_assigning_a_wrong_shape_or_nothing_is_refused(encode: Encode) -> None:
    layer = nn.Linear(8, 12)
    list(encode(layer, Int(8)))
    with pytest.raises(EncodingError, match=r"\(12, 9\)"):
        layer.weight = nn.Parameter(torch.randn(12, 9))
    with pytest.raises((AttributeError, TypeError)):
        layer.weight = None
    layer(torch.randn(1, 8))


# training


def test_training_moves_what_is_encoded(carried: Carried, same: Any) -> None:
    model = carried.model.train()
    before, frozen, expected = stored(model), dict(model.named_parameters()), model(carried.x)
    zeros = {paths: tensor_at(model, paths[0]).detach() == 0 for paths in carried.encoded}
    unfreeze(model)
    new = {name for name, _ in model.named_parameters()} - set(frozen)
    assert new == {f"{paths[0]}_encoded.latent" for paths in carried.encoded}
    close(model(carried.x), expected)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)  # far enough for signs to change
    for _ in range(4):
        optimizer.zero_grad()
        model(carried.x).square().mean().backward()
        assert all(held.latent.grad is not None for _, held in encoded_tensors(model))  # type: ignore[union-attr]
        optimizer.step()
    trained = model(carried.x).detach()
    assert not torch.allclose(trained, expected)
    freeze(model)
    assert {name for name, _ in model.named_parameters()} == set(frozen)
    close(model(carried.x), trained, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == list(before)
    for paths, held in encoded_tensors(model):
        if isinstance(held.encoding, Sparse):
            assert bool((held()[zeros[paths]] == 0).all())
        for name, x in held.encoded().tensors().items():
            if name.endswith(("scale", "offset", "scale.codes")):
                same(x, before[f"{paths[0]}_encoded.{name}"])  # the grid is the one it was
    moving = ("codes", "values", "left", "right")
    assert any(not torch.equal(x, before[name]) for name, x in model.state_dict().items() if name.endswith(moving))


def test_zeros_stay_zero_while_training(host: Host, encode: Encode) -> None:
    model = host.make()
    list(encode(model, Sparse()))
    zeros = {paths: held() == 0 for paths, held in encoded_tensors(model)}
    unfreeze(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    x = host.example()
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        for paths, held in encoded_tensors(model):
            assert bool((held()[zeros[paths]] == 0).all())


def test_unfreezing_and_freezing_changes_nothing(carried: Carried, same: Any) -> None:
    before = stored(carried.model)
    with torch.no_grad():
        expected = carried.model(carried.x)
        for _ in range(2):
            same(unfreeze(carried.model)(carried.x), expected)
            freeze(carried.model)
        same(carried.model(carried.x), expected)
    assert_same_state(stored(carried.model), before)


def test_an_unfrozen_model_can_be_copied_saved_and_made_dense(carried: Carried, same: Any) -> None:
    model = unfreeze(carried.model)
    with torch.no_grad():
        for _, held in encoded_tensors(model):
            held.latent.add_(0.05)  # type: ignore[union-attr]
    expected = model(carried.x).detach()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), to_dense(model)):
        close(other(carried.x), expected)
    other = unfreeze(copy.deepcopy(model))
    other.load_state_dict(stored(model), strict=True)
    same(other(carried.x), expected)


# types and devices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_changes_what_is_decoded_and_not_what_is_stored(carried: Carried, dtype: torch.dtype, same: Any) -> None:
    before = {name: x for name, x in stored(carried.model).items() if "_encoded." in name}
    expected = {paths: tensor_at(carried.model, paths[0]) for paths in carried.encoded}
    model = carried.model.to(dtype)
    for paths in carried.encoded:
        assert tensor_at(model, paths[0]).dtype == dtype
        close(tensor_at(model, paths[0]), expected[paths].to(dtype), rtol=1e-6, atol=0)
    x = carried.x.to(dtype) if carried.x.is_floating_point() else carried.x
    assert model(x).dtype == dtype
    assert_same_state({name: x for name, x in model.state_dict().items() if "_encoded." in name}, before)
    model.float()
    for paths in carried.encoded:
        same(tensor_at(model, paths[0]), expected[paths])


def test_a_cast_of_an_unfrozen_model_casts_the_latent(encode: Encode) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    list(encode(model, Int(8)))
    unfreeze(model).double()
    model(torch.randn(2, 8, dtype=torch.float64)).sum().backward()
    assert model[0].weight_encoded.latent.grad.dtype == torch.float64


def test_it_moves_to_another_device(carried: Carried) -> None:
    model = carried.model.to("meta")
    assert {x.device.type for x in model.state_dict().values()} == {"meta"}
    assert tensor_at(model, carried.encoded[0][0]).device.type == "meta"


# back to ordinary


def test_to_dense_gives_ordinary_modules(carried: Carried, same: Any) -> None:
    before = stored(carried.model)
    dense = to_dense(carried.model)
    assert_same_state(stored(carried.model), before)
    assert [type(m) for m in dense.modules()] == [type(m) for m in carried.dense.modules()]
    assert list(dense.state_dict()) == list(carried.dense.state_dict())
    assert [name for name, _ in dense.named_parameters()] == [name for name, _ in carried.dense.named_parameters()]
    assert list(tensors(dense)) == list(tensors(carried.dense))  # the ties as well
    with torch.no_grad():
        same(dense(carried.x), carried.model(carried.x))
    dense(carried.x).sum().backward()
    assert all(p.grad is not None for p in dense.parameters())
    pickle.loads(pickle.dumps(dense))(carried.x)


def test_a_module_under_two_names_is_carried_and_made_dense(encode: Encode, same: Any) -> None:
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    list(encode(model, Int(8)))
    x = torch.randn(2, 8)
    assert [paths for paths, _ in encoded_tensors(model)] == [("0.weight", "2.weight")]
    dense = to_dense(model)
    assert dense[0] is dense[2] and type(dense[0]) is nn.Linear
    same(dense(x), model(x))


def test_nothing_keeps_a_dropped_model_alive(encode: Encode) -> None:
    import weakref

    model = nn.Sequential(nn.Linear(8, 8))
    list(encode(model, Sparse()))
    model(torch.randn(1, 8))
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None


# torch's own machinery


@pytest.mark.parametrize("carried", EVERY_HOST, ids=str, indirect=True)
@pytest.mark.parametrize("strict", [False, True])
def test_torch_export(carried: Carried, strict: bool) -> None:
    model, before = carried.model.eval(), stored(carried.model)
    exported = torch.export.export(model, (carried.x,), strict=strict)
    close(exported.module()(carried.x), model(carried.x))
    assert any("_encoded" in name for name in (*exported.state_dict, *exported.constants))
    assert_same_state(stored(model), before)


@pytest.mark.parametrize("carried", EVERY_HOST, ids=str, indirect=True)
def test_torch_compile(carried: Carried) -> None:
    torch.compiler.reset()
    compiled = torch.compile(carried.model, backend="eager")
    with torch.no_grad():
        close(compiled(carried.x), carried.model(carried.x))


@pytest.mark.parametrize("encoding", ONE_OF_EACH, ids=repr)
def test_training_steps_can_be_compiled(encoding: Encoding, encode: Encode) -> None:
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    list(encode(model, encoding))
    unfreeze(model)
    x = torch.randn(2, 8)
    torch.compile(model, backend="eager")(x).sum().backward()
    found = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    model.zero_grad()
    model(x).sum().backward()
    close(found, [p.grad for p in model.parameters()])


def test_functional_call(carried: Carried, same: Any) -> None:
    before, expected = stored(carried.model), carried.model(carried.x)
    state = {name: x.clone() for name, x in (*carried.model.named_parameters(), *carried.model.named_buffers())}
    # a tied encoding is a module with two owners, which torch.func would restore wrongly as it does any such module
    same(functional_call(carried.model, state, (carried.x,), tie_weights=False), expected)
    functional_call(carried.model, {name: x * 0 for name, x in state.items()}, (carried.x,), tie_weights=False)
    assert_same_state(stored(carried.model), before)
    same(carried.model(carried.x), expected)


def test_functional_call_with_dense_tensors_leaves_no_trace(carried: Carried, same: Any) -> None:
    """Whoever swaps `weight` for a moment gets all back, bit for bit."""
    before, expected = stored(carried.model), carried.model(carried.x)
    swapped = {paths[0]: torch.randn(tensor_at(carried.model, paths[0]).shape) for paths in carried.encoded}
    out = functional_call(carried.model, swapped, (carried.x,))
    assert not torch.allclose(out, expected)
    assert_same_state(stored(carried.model), before)
    same(carried.model(carried.x), expected)
    assert [paths for paths, _ in encoded_tensors(carried.model)] == list(carried.encoded)


# parametrizations


def normed(kind: str) -> nn.Module:
    layer = nn.Linear(8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather see the newer ones
        if kind == "weight_norm (old)":
            nn.utils.weight_norm(layer)
        if kind == "spectral_norm (old)":
            nn.utils.spectral_norm(layer)
    if kind == "weight_norm":
        nn.utils.parametrizations.weight_norm(layer)
    if kind == "spectral_norm":
        nn.utils.parametrizations.spectral_norm(layer)
    if kind == "orthogonal":
        nn.utils.parametrizations.orthogonal(layer)
    with torch.no_grad():  # away from where the parametrization began, as training goes
        for p in layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
        layer(torch.randn(2, 8))
    return nn.Sequential(layer, nn.Tanh())


NORMS = ["weight_norm (old)", "spectral_norm (old)", "weight_norm", "spectral_norm", "orthogonal"]


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("training", [False, True])
def test_parametrizations_are_folded_on_a_copy(kind: str, training: bool, same: Any) -> None:
    model, x = normed(kind), torch.randn(3, 8)
    with torch.no_grad():  # torch itself cannot copy an old weight norm after a run with gradients
        expected = model.eval()(x)
    model.train(training)
    before, hooks = stored(model), len(model[0]._forward_pre_hooks)
    folded = fold_parametrizations(copy.deepcopy(model))
    assert type(folded[0]) is nn.Linear and set(folded.state_dict()) == {"0.weight", "0.bias"}
    assert folded.training == training
    close(folded.eval()(x), expected)
    assert_same_state(stored(model), before)
    assert len(model[0]._forward_pre_hooks) == hooks
    with torch.no_grad():
        same(model.eval()(x), expected)
    plain = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    plain.load_state_dict(folded.state_dict(), strict=True)
    folded.load_state_dict(plain.state_dict(), strict=True)  # no hook of the norm is left that asks for more
    folded.load_state_dict(dict(plain.state_dict()), strict=True)
    attach(folded, ("0.weight",), Int(8).represent(folded[0].weight))
    folded(x)


@pytest.mark.parametrize("kind", NORMS)
def test_a_parametrized_tensor_is_not_encoded_unfolded(kind: str) -> None:
    model = normed(kind)
    with pytest.raises(EncodingError, match=r"0\.weight.*fold"):
        attach(model, ("0.weight",), Int(8).represent(torch.randn(8, 8)))


def test_a_parametrized_recurrent_layer_computes_the_same_folded() -> None:
    model = nn.LSTM(8, 8)
    nn.utils.parametrizations.weight_norm(model, "weight_hh_l0")
    with torch.no_grad():
        model.parametrizations.weight_hh_l0.original0.mul_(2)  # type: ignore[union-attr]
    x = torch.randn(5, 2, 8)
    with torch.no_grad():
        expected = model.eval()(x)[0]
    folded = fold_parametrizations(copy.deepcopy(model))
    close(folded(x)[0], expected)
    attach(folded, ("weight_hh_l0",), BFloat16().represent(folded.weight_hh_l0))
    close(folded(x)[0], expected, share=0.02)


@pytest.mark.parametrize("encoding", [Sparse(), Int(8)], ids=repr)
def test_recurrent_layers_keep_their_list_of_tensors(encoding: Encoding, encode: Encode) -> None:
    model = nn.LSTM(8, 8)
    list(encode(model, encoding))
    model.flatten_parameters()
    assert [id(type(x)) for x in model._flat_weights] == [id(Tensor), id(Tensor), id(nn.Parameter), id(nn.Parameter)]
    model.bias_ih_l0 = nn.Parameter(torch.full((32,), 5.0))
    assert model._flat_weights[2] is model.bias_ih_l0
    dense = to_dense(model)
    assert all(
        a is getattr(dense, name) for a, name in zip(dense._flat_weights, dense._flat_weights_names, strict=True)
    )


@pytest.mark.parametrize("encoding", ONE_OF_EACH, ids=repr)
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(8, 8, 2, bidirectional=True, batch_first=True),
        lambda: nn.LSTM(8, 8, 2, proj_size=4),
        lambda: nn.GRU(8, 8, 2, bidirectional=True),
        lambda: nn.RNN(8, 8, bias=False),
    ],
    ids=["LSTM", "projected", "GRU", "RNN"],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_recurrent_layers_of_every_kind_carry_encodings(make: Any, encoding: Encoding, encode: Encode) -> None:
    """Alone, copied, on padded and packed sequences, trained, and dense again."""
    model, x = make().eval(), torch.randn(5, 3, 8)
    paths = list(encode(model, encoding))
    assert len(paths) == sum(p.dim() > 1 for p in to_dense(model).parameters())
    dense, packed = to_dense(model), nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 3, 1, 2, 3]), True, False)
    with torch.no_grad():
        for given in (x, packed):
            ours, theirs = (copy.deepcopy(net)(given)[0] for net in (model, dense))
            close(ours, theirs, rtol=0, atol=0)
    unfreeze(model)
    model.train()(x)[0].square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    torch.optim.SGD(model.parameters(), 0.1).step()
    freeze(model)
    with torch.no_grad():
        close(model.eval()(x)[0], to_dense(model)(x)[0], rtol=0, atol=0)
