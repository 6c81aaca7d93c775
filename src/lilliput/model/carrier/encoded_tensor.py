"""The child module that holds one tensor in its representation, and decodes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.encodings import Encoded, Encoding
from lilliput.errors import EncodingError
from lilliput.model.carrier.duplicate import duplicate

SUFFIX = "_encoded"  # of the name of such a child, after the tensor's own


class EncodedTensor(nn.Module):
    """One tensor in its representation; calling it decodes.

    Frozen, it holds the parts as buffers. Unfrozen (`unfreeze`), it holds a latent parameter besides, and decodes to
    the latent's projection; `freeze` stores the codes again. What else is learnt (scales, levels) is a parameter each
    in the meantime.
    """

    latent: nn.Parameter | None

    def __init__(self, encoded: Encoded, requires_grad: bool = True) -> None:
        super().__init__()
        self.encoding, self.shape, self.dtype = encoded.encoding, encoded.shape, encoded.dtype
        self.requires_grad = requires_grad  # of the latent parameter, as of the one that the user's class made
        self.part_names = tuple(sorted(encoded.parts))  # one order, whether it was fitted or read from a file
        for name in self.part_names:
            part = encoded.parts[name]
            if isinstance(part, Encoded):
                self.add_module(name, EncodedTensor(part))
            else:
                self.register_buffer(name, part)
        self.register_parameter("latent", None)

    def encoded(self) -> Encoded:
        """The frozen representation, sharing the buffers."""
        parts = {name: getattr(self, name) for name in self.part_names}
        return Encoded(
            self.encoding,
            self.shape,
            self.dtype,
            {name: part.encoded() if isinstance(part, EncodedTensor) else part for name, part in parts.items()},
        )

    def forward(self) -> Tensor:
        if self.latent is not None and (parts := learnt_parts(self)):
            decoded = self._learning(self.latent, parts)
        elif self.latent is not None:
            decoded = self.encoding.project(self.latent, self.encoded())
        else:
            decoded = self.encoded().decode()
        if not torch.compiler.is_compiling():
            decoded = decoded.view(decoded.shape)  # never a buffer itself, which must not carry the mark
            decoded.encoded_by = self  # type: ignore[attr-defined]  # lets an assignment of this tensor make a tie
        return decoded

    @torch.no_grad()
    def write(self, x: Tensor) -> None:
        """Hold `x` instead, at the nearest representable point; what the encoding established lasts."""
        if tuple(x.shape) != tuple(self.shape):
            raise EncodingError(f"a tensor of shape {tuple(x.shape)} for one of {tuple(self.shape)}")
        if self.latent is not None:
            self.latent.copy_(x)
            return
        frozen = self.encoded()
        kept = self.encoding.enforce(x.detach().to(self.dtype), frozen)
        self._hold(self.encoding.represent(kept))

    def holding(self, x: Tensor) -> EncodedTensor:
        """Another one like this that holds `x`."""
        other = duplicate(self)
        other.write(x)
        return other

    def _learning(self, latent: Tensor, learnt: dict[str, nn.Parameter]) -> Tensor:
        frozen = self.encoded()
        parts = {**self.encoding.parameters(frozen), **learnt}
        shared = max(1, latent.numel() // max(1, max(part.numel() for part in learnt.values())))
        return self.encoding.learn(self.encoding.enforce(latent, frozen), parts, shared)

    def unfreeze(self, learn: bool = False) -> None:
        """Hold what is trained as parameters: the numbers, and if `learn` what the encoding's parts are learnt of."""
        if self.latent is None:
            frozen = self.encoded()
            self.latent = nn.Parameter(frozen.decode().clone(), self.requires_grad)
            if learn:
                to_learn(self, self.encoding, self.encoding.parameters(frozen), self.requires_grad)

    def freeze(self) -> None:
        if self.latent is not None:
            frozen, latent = self.encoded(), self.latent.detach()
            kept = self.encoding.enforce(latent, frozen)
            parameters = self.encoding.parameters(frozen)
            self._hold(self.encoding.represent(kept, {**parameters, **learnt(self, self.encoding, parameters)}))
            self.requires_grad, self.latent = self.latent.requires_grad, None

    def _hold(self, encoded: Encoded) -> None:
        for name, tensor in encoded.tensors().items():
            owner, _, leaf = name.rpartition(".")
            held = getattr(self.get_submodule(owner), leaf)
            setattr(self.get_submodule(owner), leaf, tensor.to(held.device))

    def _apply(self, fn: Any, recurse: bool = True) -> EncodedTensor:
        """Moves follow; a change of floating type changes what is decoded, not what is stored."""
        types = {name: part.dtype for name, part in self._modules.items()}  # type: ignore[union-attr]
        move_stored(self, fn, recurse)
        for name, dtype in types.items():
            self._modules[name].dtype = dtype  # type: ignore[union-attr]
        if self.dtype.is_floating_point:
            self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    def extra_repr(self) -> str:
        return f"{self.encoding}, shape={tuple(self.shape)}"


_LEARNT = "learnt_"  # of the name of a parameter that holds a part while it is learnt, before the part's own


def to_learn(module: nn.Module, encoding: Encoding, parts: Mapping[str, Tensor], requires_grad: bool = True) -> None:
    """Let `module` hold those of `parts` that `encoding` names learnable as parameters, float32."""
    for name in encoding.learnable:
        if name in parts and parts[name].numel():
            held = nn.Parameter(parts[name].detach().float().clone(), requires_grad)
            held.decays = False  # type: ignore[attr-defined]  # for optimizers: a scale that decays shifts all it scales
            module.register_parameter(f"{_LEARNT}{name}", held)


def tie_learnt(module: nn.Module, other: nn.Module, part: str) -> None:
    """Let `module` learn a part by the parameter by which `other` does."""
    name = f"{_LEARNT}{part}"
    if name in module._parameters and name in other._parameters:
        module._parameters[name] = other._parameters[name]


def learnt_parts(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that hold what is learnt, by the names of the parts."""
    held = module._parameters.items()
    return {name.removeprefix(_LEARNT): p for name, p in held if name.startswith(_LEARNT) and p is not None}


@torch.no_grad()
def learnt(module: nn.Module, encoding: Encoding, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was learnt, as it is stored, in the types of `parts`; `module` holds it as parameters no more."""
    found = encoding.settled({name: p.detach() for name, p in learnt_parts(module).items()})
    for name in found:
        del module._parameters[f"{_LEARNT}{name}"]
    return {name: x.to(parts[name].dtype) for name, x in found.items()}


def move_stored(module: nn.Module, fn: Any, recurse: bool) -> None:
    """`nn.Module._apply` (moves, casts) under which buffers move but keep their type, and with it their bits."""
    stored = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
    nn.Module._apply(module, fn, recurse)
    for name, buffer in stored.items():
        moved = module._buffers[name]
        if moved is not None and moved.dtype != buffer.dtype:
            module._buffers[name] = buffer.to(moved.device)
