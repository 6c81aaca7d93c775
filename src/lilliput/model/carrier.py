"""How encodings live in a module: a child beside the tensor's name, and a property under the name that decodes it.

The tensor ``weight`` of a layer lives in its child ``weight_encoded``. (A child of the very same name would hide behind
the property from everything in torch that walks paths by attribute: `functional_call`, and with it `torch.export`.)
The module keeps its type: its class becomes a memoised subclass, made once for each (class, tensor names), that is
never changed afterwards. Copying, pickling, `state_dict`, `torch.export` and training therefore work as for any module.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lilliput.encodings import Encoded
from lilliput.errors import EncodingError


SUFFIX = "_encoded"


class EncodedTensor(nn.Module):
    """One tensor in its representation; calling it decodes.

    Frozen, it holds the parts as buffers. Unfrozen (`unfreeze`), it holds a latent parameter besides, and decodes to
    the latent's projection; `freeze` stores the codes again.
    """

    def __init__(self, encoded: Encoded) -> None:
        super().__init__()
        self.encoding, self.shape, self.dtype = encoded.encoding, encoded.shape, encoded.dtype
        self.part_names = tuple(encoded.parts)
        for name, part in encoded.parts.items():
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
        if self.latent is not None:
            decoded = self.encoding.project(self.latent, self.encoded())
        else:
            decoded = self.encoded().decode()
        decoded.encoded_by = self  # type: ignore[attr-defined]  # lets an assignment of this tensor keep the tie
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

    def unfreeze(self) -> None:
        if self.latent is None:
            self.latent = nn.Parameter(self.encoded().decode().clone())

    def freeze(self) -> None:
        if self.latent is not None:
            frozen, latent = self.encoded(), self.latent.detach()
            kept = self.encoding.enforce(latent, frozen)
            self._hold(self.encoding.represent(kept, self.encoding.parameters(frozen)))
            self.latent = None

    def _hold(self, encoded: Encoded) -> None:
        for name, tensor in encoded.tensors().items():
            owner, _, leaf = name.rpartition(".")
            held = getattr(self.get_submodule(owner), leaf)
            setattr(self.get_submodule(owner), leaf, tensor.to(held.device))

    def _apply(self, fn: Any, recurse: bool = True) -> EncodedTensor:
        """Moves follow; a change of floating type changes what is decoded, not what is stored."""
        stored = {name: buffer.dtype for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, dtype in stored.items():
            self._buffers[name] = self._buffers[name].to(dtype)  # type: ignore[union-attr]
        if self.dtype.is_floating_point:
            self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    def extra_repr(self) -> str:
        return f"{self.encoding}, shape={tuple(self.shape)}"


@functools.cache
def encoded_class(base: type[nn.Module], names: tuple[str, ...], values: bool = False) -> type[nn.Module]:
    """The subclass of `base` whose tensors `names` are decoded on access, and whose run encodes `values` that flow.

    The latter is for the root of a model, where a child `value_encodings` says which values.
    """

    def __setattr__(self: nn.Module, name: str, value: Any) -> None:
        if name in names and isinstance(value, Tensor):
            source = getattr(value, "encoded_by", None)
            if source is not None and source.latent is None:
                self._modules[name + SUFFIX] = source
            else:
                self._modules[name + SUFFIX].write(value)  # type: ignore[union-attr,operator]
        else:
            base.__setattr__(self, name, value)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        return _new, (base, names, values), self.__getstate__()

    def _load_from_state_dict(self: nn.Module, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in names:  # a dense checkpoint is accepted, and encoded as it comes in
            dense = state_dict.pop(f"{prefix}{name}", None)
            if dense is not None:
                child: EncodedTensor = self._modules[name + SUFFIX]  # type: ignore[assignment]
                child.write(dense)
                state_dict.update(child.state_dict(prefix=f"{prefix}{name}{SUFFIX}."))
        base._load_from_state_dict(self, state_dict, prefix, *args)

    members: dict[str, Any] = {
        "__setattr__": __setattr__,
        "_load_from_state_dict": _load_from_state_dict,
        "__reduce_ex__": __reduce_ex__,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "encoded_base": base,
        "encoded_names": names,
        "encodes_values": values,
    }
    for name in names:
        members[name] = property(functools.partial(_decode, name))
    if issubclass(base, nn.RNNBase):  # these keep a second list of their own tensors
        members["_flat_weights"] = property(
            lambda self: [getattr(self, name) for name in self._flat_weights_names], lambda self, value: None
        )
    if values:

        @functools.wraps(base.forward)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with self.value_encodings.simulated(self):  # type: ignore[union-attr,operator]
                return base.forward(self, *args, **kwargs)

        members["forward"] = forward
    return type(base.__name__, (base,), members)


def _decode(name: str, module: nn.Module) -> Tensor:
    return module._modules[name + SUFFIX]()  # type: ignore[no-any-return,misc]


def _new(base: type[nn.Module], names: tuple[str, ...], values: bool) -> nn.Module:
    cls = encoded_class(base, names, values)
    return cls.__new__(cls)


def become(module: nn.Module, names: tuple[str, ...], values: bool | None = None) -> None:
    """Give `module` the class that carries the tensors `names` (and values that flow, where it is a root)."""
    base = plain_class(module)
    carries = getattr(type(module), "encodes_values", False) if values is None else values
    module.__class__ = encoded_class(base, tuple(sorted(names)), carries) if names or carries else base


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class the user wrote, without what the carrier added."""
    return getattr(type(module), "encoded_base", type(module))


def encoded_names(module: nn.Module) -> tuple[str, ...]:
    return getattr(type(module), "encoded_names", ())


def attach(root: nn.Module, paths: tuple[str, ...], encoded: Encoded) -> None:
    """Put one encoded tensor into `root` under all of `paths` (several when it is tied)."""
    child = EncodedTensor(encoded)
    for path in paths:
        owner, name = owner_of(root, path)
        parametrized = getattr(owner, "parametrizations", {})
        if name in parametrized or f"{name}_g" in owner._parameters:
            raise EncodingError("a parametrized tensor", where=path, next="fold it first: lilliput.model.fold_parametrizations")
        owner._parameters.pop(name, None)
        owner._buffers.pop(name, None)
        names = encoded_names(owner)
        if name not in names:
            become(owner, (*names, name))
        owner.__dict__.pop("_flat_weights", None)
        owner._modules[name + SUFFIX] = child


def owner_of(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the tensor at `path`, and the tensor's name in it."""
    module_path, _, name = path.rpartition(".")
    return root.get_submodule(module_path), name


def tensors(root: nn.Module) -> dict[tuple[str, ...], Tensor | EncodedTensor]:
    """Every parameter and encoded tensor once, by the tuple of all its paths: a tied one has several."""
    found: dict[int, tuple[list[str], Tensor | EncodedTensor]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if isinstance(module, EncodedTensor):
            continue
        held = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
        held |= {name: module._modules[name + SUFFIX] for name in encoded_names(module)}  # type: ignore[misc]
        for name, tensor in held.items():
            found.setdefault(id(tensor), ([], tensor))[0].append(prefix + name)
    return {tuple(paths): tensor for paths, tensor in found.values()}


def encoded_tensors(root: nn.Module) -> Iterator[tuple[tuple[str, ...], EncodedTensor]]:
    """Every encoded tensor once, with all the paths it is known by."""
    for paths, tensor in tensors(root).items():
        if isinstance(tensor, EncodedTensor):
            yield paths, tensor


def unfreeze(root: nn.Module) -> nn.Module:
    """Make encoded tensors trainable: each holds a latent parameter whose projection the module sees.

    Do this before the optimizer is built (and before FSDP wraps the module); `freeze` when the training is over.
    """
    for _, tensor in encoded_tensors(root):
        tensor.unfreeze()
    return root


def freeze(root: nn.Module) -> nn.Module:
    """Store the codes of trained tensors again and drop their latent parameters."""
    for _, tensor in encoded_tensors(root):
        tensor.freeze()
    return root


def to_dense(root: nn.Module) -> nn.Module:
    """A copy of `root` in which every tensor is an ordinary parameter, no value is encoded, every class the user's own."""
    dense = copy.deepcopy(root)
    if getattr(type(dense), "encodes_values", False):
        del dense._modules["value_encodings"]
        become(dense, encoded_names(dense), values=False)
    for paths, tensor in list(encoded_tensors(dense)):
        with torch.no_grad():
            parameter = nn.Parameter(tensor().detach().clone())
        for path in paths:
            owner, name = owner_of(dense, path)
            del owner._modules[name + SUFFIX]
            rest = tuple(known for known in encoded_names(owner) if known != name)
            become(owner, rest)
            owner._parameters[name] = parameter
            if isinstance(owner, nn.RNNBase) and not rest:
                owner._flat_weights = [getattr(owner, flat) for flat in owner._flat_weights_names]
    return dense


def fold_parametrizations(root: nn.Module) -> nn.Module:
    """Turn `parametrize`d and weight-normalised tensors of `root` into ordinary parameters, in place.

    The class of a parametrized module is shared with its copies, so it is left alone and only exchanged.
    """
    for module in root.modules():
        if parametrize.is_parametrized(module):
            names = list(module.parametrizations)  # type: ignore[arg-type,union-attr]
            values = {name: getattr(module, name).detach().clone() for name in names}
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))
        for key, hook in list(module._forward_pre_hooks.items()):
            if type(hook).__name__ in ("WeightNorm", "SpectralNorm"):
                hook.remove(module)  # type: ignore[attr-defined]
                del module._forward_pre_hooks[key]
    return root
