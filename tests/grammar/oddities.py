"""What is done to a network after it is made: hooks, a `forward` of its own, the state that it is left in."""

from __future__ import annotations

from collections.abc import Mapping

from source import Source

NAMES = (
    "left:right",
    "x_encoded",
    "weight_encoded",
    "with space",
    "größe",
    "0",
    "a/b",
    "a#0",
    "a@0",
    "[1]",
    "*",
    "!not",
    "lambda",
    "value_encodings",
    "codes",
    "input",
    "x",
    "_orig_mod",
    "output",
    "a:relu#0",
    "🙂",
    "-",
    "weight",
    "tensor a",
    "a,b",
    "None",
    "net",
    "__dunder__",
)

ODDITIES: Mapping[str, str] = {  # {layer} is the first layer that gives one tensor
    "hook": "{layer}.register_forward_hook(lambda m, i, o: o * 2)",
    "pre-hook": "{layer}.register_forward_pre_hook(lambda m, i: (i[0] * 0.5,))",
    "root hook": "net.register_forward_hook(lambda m, i, o: o * 2 if isinstance(o, torch.Tensor) else None)",
    "root pre-hook": "net.register_forward_pre_hook(lambda m, i: (i[0] * 2, *i[1:]) if i and is_float(i[0]) else None)",
    "keyword hook": "net.register_forward_pre_hook(doubled, with_kwargs=True)",
    "keeping hook": "net.kept = {{}}; {layer}.register_forward_hook(lambda m, i, o: net.kept.update(o=o))",
    "reading hook": "{layer}.register_forward_hook(lambda m, i, o: o + net.marker); net.marker = torch.tensor(0.5)",
    "backward hook": "{layer}.register_full_backward_hook(lambda m, i, o: None)",
    "own forward": "net.forward = net.forward",
    "patched forward": "net.forward = (lambda f: lambda *a, **k: f(*a, **k))(net.forward)",
    "layer's own forward": "{layer}.forward = {layer}.forward",
    "layer's patched forward": "{layer}.forward = (lambda f: lambda x: f(x) * 2)({layer}.forward)",
    "training": "net.train()",
    "part training": "{layer}.train()",
    "frozen": "net.requires_grad_(False)",
    "channels last": "[m.to(memory_format=torch.channels_last) for m in net.modules() if isinstance(m, nn.Conv2d)]",
    "strided weights": "[setattr(p, 'data', p.data.mT.contiguous().mT) for p in net.parameters() if p.dim() > 1]",
    "one storage": "one_storage(net)",
    "expanded weight": "[setattr(p, 'data', p.data[:1].expand_as(p)) for p in list(net.parameters())[:1]]",
    "zero weights": "[p.data.zero_() for p in list(net.parameters())[:1]]",
    "large weights": "[p.data.mul_(1e6) for p in list(net.parameters())[:1]]",
    "tiny weights": "[p.data.mul_(1e-30) for p in list(net.parameters())[:1]]",
    "a dead channel": "[p.data[:1].zero_() for p in net.parameters() if p.dim()]",
    "an outlier": "[p.data.view(-1)[:1].fill_(100.0) for p in net.parameters() if p.is_contiguous()]",
    "with gradients": "[setattr(p, 'grad', torch.ones_like(p)) for p in net.parameters() if p.requires_grad]",
    "extra state": "Net.get_extra_state = lambda self: {{'v': 1}}; Net.set_extra_state = lambda self, v: None",
    "in a sequence": "net = nn.Sequential(net)",
    "in data parallel": "net = nn.DataParallel(net)",
    "traced": "try: net = torch.fx.symbolic_trace(net)\nexcept Exception: pass  # what loops over a shape stays",
    "swapped class": "net.__class__ = type('Other', (net.__class__,), {{}})",
    "attribute on the layer": "{layer}.note = {{'made by': 'us', 'at': (1, 2)}}",
    "own call": "Net.__call__ = lambda self, *a, **k: nn.Module.__call__(self, *a, **k)",
    "module dict of layers": "net.same = nn.ModuleDict({{'again': {layer}}})",
    "list of layers": "net.plain_list = [{layer}]",
    "state dict hook": "net.register_state_dict_post_hook(lambda m, d, p, l: None)",
    "cached activation": "net.cache = {layer}.weight * 2 if hasattr({layer}, 'weight') else None",
}


_AROUND = ("in a sequence", "in data parallel")


def write_oddities(source: Source, names: list[str]) -> None:
    names = sorted(names, key=lambda name: name in _AROUND)  # others name layers, which lie deeper then
    layer = source.layers[0].replace("self", "net", 1) if source.layers else "net"
    source.after += [ODDITIES[name].format(layer=layer) for name in names]
