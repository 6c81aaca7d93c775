"""Bytes that a file holds twice.

Found in use (issue 15): a `.lil` with its graph held batch norms twice wherever nothing was quantized, as tensors of
the module and folded into the graph's weights. EfficientNet-Lite0 took 26.7 MB of 18.8 MB of tensors, and a generator
pruned by channels got larger than its original. Right: every large tensor of the graph is one of the module's, and no
file is larger than the tensors that the original holds, but for the text of graph and index.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import lilliput as lp
from lilliput.file.container import Reader
from lilliput.file.graph import restored

GRAPH, A_NODE, A_TENSOR = 1024, 64, 128  # bytes of text: of the graph, of each of its nodes, of an entry of the index


class Of(nn.Module):
    """A function of the module and its inputs."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Parameter | nn.Module):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def first(module: nn.Module) -> nn.Module:
    """A recurrent layer that gives its outputs alone."""
    return Of(lambda own, x: own.layer(x)[0], layer=module)


def standardized(own: nn.Module, x: Tensor) -> Tensor:
    w = own.conv.weight
    return F.conv2d(x, (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True))


def masked(own: nn.Module, x: Tensor) -> Tensor:
    scores = (x @ x.transpose(1, 2)).masked_fill(own.mask[: x.shape[1], : x.shape[1]] == 0, -1e4)
    return own.layer(torch.softmax(scores, -1) @ x)


def made(own: nn.Module, x: Tensor) -> Tensor:
    """With positions and a mask that are made at each call."""
    n = x.shape[1]
    later = torch.triu(torch.ones(64, 64), 1)[:n, :n] * -1e4
    waves = torch.sin(torch.arange(64)[:, None] / torch.arange(1, 65))[:n]
    return own.layer(torch.softmax(x @ x.transpose(1, 2) + later, -1) @ (x + waves))


def norm(*widths: int) -> list[nn.Module]:
    """A batch norm for each width, with statistics as of training."""
    found = [nn.BatchNorm2d(width) for width in widths]
    for layer in found:
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        nn.init.normal_(layer.weight)
    return list(found)


def linear_norms() -> nn.Module:
    flat = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 64, False), nn.BatchNorm1d(64))
    flat.train()(3 * torch.randn(32, 64) + 1)
    return flat


def convolutions() -> nn.Module:
    one, two = norm(40, 40)
    return nn.Sequential(nn.Conv2d(12, 40, 3, bias=False), one, nn.ReLU(), nn.Conv2d(40, 40, 3), two, nn.ReLU())


def transposed() -> nn.Module:
    one, two = norm(32, 20)
    return nn.Sequential(nn.ConvTranspose2d(12, 32, 4), one, nn.ReLU(), nn.ConvTranspose2d(32, 20, 4, 2), two)


def parametrized() -> nn.Module:
    one, two = parametrizations.weight_norm(nn.Conv2d(12, 40, 3)), parametrizations.spectral_norm(nn.Conv2d(40, 40, 1))
    return nn.Sequential(one, nn.ReLU(), two)


def tied() -> nn.Module:
    table = nn.Embedding(200, 24)
    return Of(lambda own, x: F.linear(own.table(x), own.table.weight), table=table)


def attention() -> nn.Module:
    return Of(lambda own, x: own.layer(x, x, x)[0], layer=nn.MultiheadAttention(64, 4, batch_first=True))


PICTURE, SEQUENCE = torch.randn(2, 12, 12, 12), torch.randn(2, 20, 64)
KINDS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "norms behind convolutions": (convolutions, PICTURE),
    "norms behind transposed convolutions": (transposed, PICTURE),
    "norms behind linear layers": (linear_norms, torch.randn(3, 64)),
    "parametrized": (parametrized, PICTURE),
    "computed from a weight": (lambda: Of(standardized, conv=nn.Conv2d(12, 40, 3)), PICTURE),
    "tied": (tied, torch.randint(200, (2, 9))),
    "one projection for three": (attention, SEQUENCE),
    "a mask in a buffer": (lambda: Of(masked, layer=nn.Linear(64, 64), mask=torch.tril(torch.ones(64, 64))), SEQUENCE),
    "a mask made at each call": (lambda: Of(made, layer=nn.Linear(64, 64)), SEQUENCE),
    "lstm, both directions": (lambda: first(nn.LSTM(64, 24, 2, batch_first=True, bidirectional=True)), SEQUENCE),
    "gru": (lambda: first(nn.GRU(64, 48, batch_first=True)), SEQUENCE),
}


def held(net: nn.Module) -> tuple[int, int]:
    """Bytes of all tensors of a module, each once, and how many there are."""
    tensors = {x.data_ptr(): x.nbytes for x in [*net.parameters(), *net.buffers()]}
    return sum(tensors.values()), len(tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_in_the_file_once(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, x = KINDS[kind]
    net = make().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    lp.save(tmp_path / "net.lil", net, example=x)
    reader = Reader(tmp_path / "net.lil")
    nodes = len(onnx.load_from_string(restored(reader)).graph.node)
    apart = {name: entry.stored_bytes for name, entry in reader.entries.items() if name.startswith(":graph")}
    assert apart.keys() == {":graph"}, "a tensor of the graph that is none of the module's"
    assert apart[":graph"] <= GRAPH + A_NODE * nodes
    tensors, count = held(net)
    assert reader.size <= tensors + GRAPH + A_NODE * nodes + A_TENSOR * count
    with torch.no_grad():
        close(lp.open(tmp_path / "net.lil", threads=1)(x), net(x), atol=2e-5, rtol=1e-4)
        close(lp.load(tmp_path / "net.lil", into=make())(x), net(x), atol=0, rtol=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_parametrized_network_saved_without_its_graph_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = parametrized().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    lp.save(tmp_path / "net.lil", net)
    assert torch.equal(lp.load(tmp_path / "net.lil", into=parametrized())(PICTURE), net(PICTURE))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("norms")])
def test_the_runtime_takes_the_norms_into_the_layers_when_it_loads(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, x = KINDS[kind]
    lp.export(tmp_path / "net.onnx", make().eval(), x)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "runs.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"])
    ops = {node.op_type for node in onnx.load(tmp_path / "runs.onnx").graph.node}
    assert not ops & {"BatchNormalization", "Mul", "Add", "Sqrt"}, ops


def test_a_pruned_generator_is_smaller_than_its_original(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, two, three = norm(48, 40, 24)
    net = nn.Sequential(
        *(nn.ConvTranspose2d(24, 48, 4, bias=False), one, nn.ReLU()),
        *(nn.ConvTranspose2d(48, 40, 4, 2, 1, bias=False), two, nn.ReLU()),
        *(nn.ConvTranspose2d(40, 24, 4, 2, 1, bias=False), three, nn.ReLU()),
        *(nn.ConvTranspose2d(24, 3, 4, 2, 1), nn.Tanh()),
    ).eval()
    task = lp.Task(net, calibrate=[torch.randn(4, 24, 1, 1)])
    target = lp.targets.OnnxRuntime(threads=1, seconds=1)
    small = lp.compress(task, lp.Recipe([lp.Prune("channels", 0.25)]), target=target)
    left = sum(x.nbytes for x in [*small.model.parameters(), *small.model.buffers()])
    assert left < held(net)[0] and isinstance(small.model[1], nn.BatchNorm2d)
    assert small.save(tmp_path / "net.lil").stat().st_size < left + GRAPH + A_TENSOR * 30
    assert small.export(tmp_path / "net.onnx").stat().st_size < left + GRAPH + A_TENSOR * 30
