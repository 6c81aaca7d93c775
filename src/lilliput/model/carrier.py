"""How encodings live in a module: a child beside the tensor's name, and a property under the name that decodes it.

The tensor ``weight`` of a layer lives in its child ``weight_encoded``. (A child of the very same name would hide behind
the property from everything in torch that walks paths by attribute: `functional_call`, and with it `torch.export`.)
The module keeps its type: its class becomes a memoised subclass, made once for each (class, tensor names), that is
never changed afterwards. Copying, pickling, `state_dict`, `torch.export` and training therefore work as for any module.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from lilliput.encodings import Encoded
from lilliput.errors import EncodingError
from lilliput.model.duplicate import duplicate
from lilliput.model.saving import METHOD, saves_itself, saving_dense

SUFFIX = "_encoded"
_ORDER = "_order_of_tensors"  # attribute of a module with encoded tensors: its parameters' names as they stood


class EncodedTensor(nn.Module):
    """One tensor in its representation; calling it decodes.

    Frozen, it holds the parts as buffers. Unfrozen (`unfreeze`), it holds a latent parameter besides, and decodes to
    the latent's projection; `freeze` stores the codes again.
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
        if self.latent is not None:
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

    def unfreeze(self) -> None:
        if self.latent is None:
            self.latent = nn.Parameter(self.encoded().decode().clone(), self.requires_grad)

    def freeze(self) -> None:
        if self.latent is not None:
            frozen, latent = self.encoded(), self.latent.detach()
            kept = self.encoding.enforce(latent, frozen)
            self._hold(self.encoding.represent(kept, self.encoding.parameters(frozen)))
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


def move_stored(module: nn.Module, fn: Any, recurse: bool) -> None:
    """`nn.Module._apply` (moves, casts) under which buffers move but keep their type, and with it their bits."""
    stored = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
    nn.Module._apply(module, fn, recurse)
    for name, buffer in stored.items():
        moved = module._buffers[name]
        if moved is not None and moved.dtype != buffer.dtype:
            module._buffers[name] = buffer.to(moved.device)


class Forward(property):
    """A `forward` for a subclass of `cls`: the one set on the instance, or else the class's, `through` a wrap.

    A function in the class would be hidden by one that is set on the instance (by accelerate or fx, say); a property
    comes before both.
    """

    def __init__(self, cls: type[nn.Module], through: Callable[[nn.Module, Callable[..., Any]], Any]) -> None:
        inner = inspect.getattr_static(cls, "forward")

        def get(module: nn.Module) -> Any:
            own = None if isinstance(inner, Forward) else vars(module).get("forward")
            run = inner.__get__(module, cls) if own is None else own
            return functools.wraps(run)(through(module, run))

        super().__init__(
            get,
            lambda module, run: vars(module).__setitem__("forward", run),
            lambda module: vars(module).__delitem__("forward"),
        )


@contextmanager
def forwarded(root: nn.Module, through: Callable[[nn.Module, Callable[..., Any]], Any]) -> Iterator[None]:
    """Inside, `root` runs by what `through` makes of it and of its forward; its class is exchanged for the while."""
    cls = type(root)
    root.__class__ = _forwarding(cls, Forward(cls, through))
    try:
        yield
    finally:
        root.__class__ = cls


def _forwarding(cls: type[nn.Module], forward: Forward) -> type[nn.Module]:
    """A subclass of `cls` with this forward; not of a graph of fx, which torch.export walks and does not call."""
    if not issubclass(cls, GraphModule):
        return type(cls.__name__, (cls,), {"forward": forward})
    decoded = {name: vars(cls)[name] for name in getattr(cls, "encoded_names", ())}
    return type(cls.__name__, (nn.Module,), {**decoded, "forward": forward})


@functools.cache
def encoded_class(
    base: type[nn.Module], names: tuple[str, ...], values: bool = False, own: bool = False
) -> type[nn.Module]:
    """The subclass of `base` whose tensors `names` are decoded on access, and whose run encodes `values` that flow.

    The latter is for the root of a model, where a child `value_encodings` says which values; `own`: the instance has
    a forward of its own.
    """

    def __setattr__(self: nn.Module, name: str, value: Any) -> None:
        if name in names and isinstance(value, Tensor):
            held: EncodedTensor = self._modules[name + SUFFIX]  # type: ignore[assignment]
            # as any assignment, this exchanges what is held here and leaves what was tied to it alone
            self._modules[name + SUFFIX] = getattr(value, "encoded_by", None) or held.holding(value)
        else:
            base.__setattr__(self, name, value)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        return _new, (base, names, values, own), self.__getstate__()

    def _load_from_state_dict(self: nn.Module, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in names:  # a dense checkpoint is accepted, and encoded as it comes in
            dense = state_dict.pop(f"{prefix}{name}", None)
            if dense is None:
                continue
            child: EncodedTensor = self._modules[name + SUFFIX]  # type: ignore[assignment]
            try:
                child.write(dense)
            except EncodingError as error:
                args[-1].append(f"{prefix}{name}: {error}")  # torch's list of messages
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
    if issubclass(base, GraphModule):  # whose own copies hold what the graph names, and no more
        members["__deepcopy__"] = _deepcopied
    if issubclass(base, nn.RNNBase):  # these keep a second list of their own tensors
        members["_flat_weights"] = property(
            lambda self: [getattr(self, name) for name in self._flat_weights_names], lambda self, value: None
        )
        members["_weights_have_changed"] = lambda self: False  # the list is made anew each time it is asked for
    if values and own:
        members["forward"] = Forward(base, lambda self, run: self.value_encodings.simulating(self, run))  # type: ignore[union-attr,operator]
    elif values:

        @functools.wraps(base.forward)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with self.value_encodings.simulated(self):  # type: ignore[union-attr,operator]
                return base.forward(self, *args, **kwargs)

        members["forward"] = forward
    if saves_itself(base):
        members[METHOD] = saving_dense(getattr(base, METHOD), to_dense, _not_in_dense)
    return type(base.__name__, (base,), members)


def _deepcopied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    reduced: Any = module.__reduce_ex__(4)
    made, arguments, state = reduced
    memo[id(module)] = copied = made(*arguments)
    copied.__setstate__(copy.deepcopy(state, memo))
    return copied  # type: ignore[no-any-return]


def _decode(name: str, module: nn.Module) -> Tensor:
    return module._modules[name + SUFFIX]()  # type: ignore[no-any-return,misc]


def _new(base: type[nn.Module], names: tuple[str, ...], values: bool, own: bool) -> nn.Module:
    cls = encoded_class(base, names, values, own)  # type: ignore[arg-type]  # classes are hashable
    return cls.__new__(cls)


def become(module: nn.Module, names: tuple[str, ...], values: bool | None = None) -> None:
    """Give `module` the class that carries the tensors `names` (and values that flow, where it is a root).

    One that writes its own checkpoints keeps it as long as anything inside is encoded.
    """
    base = plain_class(module)
    carries = getattr(type(module), "encodes_values", False) if values is None else values
    own = carries and "forward" in vars(module)
    carrying = encoded_class(base, tuple(sorted(names)), carries, own)  # type: ignore[arg-type]
    within = saves_itself(base) and any(isinstance(held, EncodedTensor) for held in module.modules())
    module.__class__ = carrying if names or carries or within else base


def _become_saved(root: nn.Module, path: str) -> None:
    """Let the modules around the encoded tensor at `path` that write their own checkpoints write what it decodes to."""
    names = path.split(".")[:-1]
    for depth in range(len(names) + 1):
        module = root.get_submodule(".".join(names[:depth]))
        if saves_itself(type(module)) and plain_class(module) is type(module):
            become(module, ())


def _not_in_dense(model: nn.Module) -> list[str]:
    """What a dense checkpoint of `model` lacks."""
    found = []
    if any(getattr(type(module), "encodes_values", False) for module in model.modules()):
        found.append("activations are not rounded by what loads this checkpoint, which holds weights alone")
    if any(tensor.latent is not None for _, tensor in encoded_tensors(model)):
        found.append("training resumed from this checkpoint goes on from rounded weights")
    return found


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class the user wrote, without what the carrier added."""
    return getattr(type(module), "encoded_base", type(module))


def encoded_names(module: nn.Module) -> tuple[str, ...]:
    return getattr(type(module), "encoded_names", ())


def attach(root: nn.Module, paths: tuple[str, ...], encoded: Encoded) -> None:
    """Put one encoded tensor into `root` under all of `paths` (several when it is tied)."""
    _refuse_part_of_tie(root, paths)
    child = EncodedTensor(encoded, _requires_grad(root, paths[0]))
    for path in paths:
        owner, name = owner_of(root, path)
        parametrized = getattr(owner, "parametrizations", {})
        if name in parametrized or {f"{name}_g", f"{name}_orig"} & owner._parameters.keys():
            raise EncodingError(
                "a parametrized tensor", where=path, next="fold it first: lilliput.model.fold_parametrizations"
            )
        if name + SUFFIX in owner._modules and name not in encoded_names(owner):
            raise EncodingError(
                f"{name} cannot be encoded beside a module called {name}{SUFFIX}",
                where=path,
                why="encoded tensors lie under that name",
                next="give that module another name",
            )
        vars(owner).setdefault(_ORDER, tuple(owner._parameters))
        owner._parameters.pop(name, None)
        owner._buffers.pop(name, None)
        names = encoded_names(owner)
        if name not in names:
            become(owner, (*names, name))
        owner.__dict__.pop("_flat_weights", None)
        owner._modules[name + SUFFIX] = child
        _become_saved(root, path)


def _refuse_part_of_tie(root: nn.Module, paths: tuple[str, ...]) -> None:
    for path in paths:
        held = tensor_held(root, path)
        left_out = [] if held is None else [other for other in paths_of(root, held) if other not in paths]
        if left_out:
            raise EncodingError(
                f"a tensor tied to {', '.join(left_out)}", where=paths[0], next="encode it once, under all of its paths"
            )


def _requires_grad(root: nn.Module, path: str) -> bool:
    """Whether the tensor that an encoded one takes the place of is trained."""
    owner, name = owner_of(root, path)
    held = dict(_held(owner)).get(name)
    return held is None or bool(held.requires_grad)


def owner_of(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the tensor at `path`, and the tensor's name in it."""
    module_path, _, name = path.rpartition(".")
    return root.get_submodule(module_path), name


def stored_of(root: nn.Module, name: str) -> str:
    """The path of the tensor that an entry of the `state_dict` is a part of.

    ``conv.weight`` for ``conv.weight_encoded.codes``; what is no part of an encoded tensor belongs to itself.
    """
    module, parts = root, name.split(".")
    for i, part in enumerate(parts):
        child = module._modules.get(part)
        if isinstance(child, EncodedTensor):
            return ".".join((*parts[:i], part.removesuffix(SUFFIX)))
        if child is None:
            break
        module = child
    return name


def tensors(root: nn.Module) -> dict[tuple[str, ...], Tensor | EncodedTensor]:
    """Every parameter and encoded tensor once, by the tuple of all its paths: a tied one has several."""
    found: dict[int, tuple[list[str], Tensor | EncodedTensor]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if isinstance(module, EncodedTensor):
            continue
        for name, tensor in _held(module):
            found.setdefault(id(tensor), ([], tensor))[0].append(prefix + name)
    return {tuple(paths): tensor for paths, tensor in found.values()}


def paths_of(root: nn.Module, held: Tensor | EncodedTensor) -> tuple[str, ...]:
    """All paths of a parameter or encoded tensor: a tied one has several."""
    return tuple(
        f"{path}.{name}" if path else name
        for path, module in root.named_modules(remove_duplicate=False)
        for name in _names(module, held)
    )


def _names(module: nn.Module, held: Tensor | EncodedTensor) -> list[str]:
    """The names under which a module itself holds a parameter or encoded tensor."""
    if isinstance(held, EncodedTensor):
        return [name for name in encoded_names(module) if module._modules[name + SUFFIX] is held]
    return [name for name, x in module._parameters.items() if x is held]


def tensor_held(root: nn.Module, path: str) -> Tensor | EncodedTensor | None:
    """The parameter or encoded tensor at `path`, without looking through the rest of the model."""
    try:
        owner, name = owner_of(root, path)
    except AttributeError:
        return None
    return None if isinstance(owner, EncodedTensor) else dict(_held(owner)).get(name)


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor | EncodedTensor]]:
    """A module's own parameters and encoded tensors, in the order in which the user's class made them."""
    encoded = encoded_names(module)
    for name in dict.fromkeys((*vars(module).get(_ORDER, ()), *module._parameters, *encoded)):
        held = module._modules[name + SUFFIX] if name in encoded else module._parameters.get(name)
        if held is not None:
            yield name, held  # type: ignore[misc]


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
    """A copy of `root` in which every tensor is an ordinary parameter, no value encoded, every class the user's own."""
    dense = duplicate(root)
    for module in dense.modules():
        if getattr(type(module), "encodes_values", False):
            del module._modules["value_encodings"]
            become(module, encoded_names(module), values=False)
    for paths, tensor in list(encoded_tensors(dense)):
        with torch.no_grad():
            parameter = nn.Parameter(tensor().detach().clone(), tensor.requires_grad)
        for path in paths:
            _give_back(*owner_of(dense, path), parameter)
    for module in dense.modules():
        if plain_class(module) is not type(module):  # it was one around what was encoded
            become(module, ())
    return dense


def _give_back(owner: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Exchange an encoded tensor for an ordinary one; with the last, all is as it was in the user's class."""
    if name not in encoded_names(owner):
        return  # a module under two paths was met before
    del owner._modules[name + SUFFIX]
    become(owner, tuple(known for known in encoded_names(owner) if known != name))
    owner._parameters[name] = parameter
    if not encoded_names(owner):
        held = dict(_held(owner))
        order = dict.fromkeys((*vars(owner).pop(_ORDER), *owner._parameters))
        owner._parameters = {known: held.get(known) for known in order}  # type: ignore[misc]
        _list_again(owner)


def fold_parametrizations(root: nn.Module) -> nn.Module:
    """Turn `parametrize`d, weight-normalised and spectrally normalised tensors into ordinary parameters, in place.

    They get the values that they have in eval mode. The class of a parametrized module is shared with its copies, so it
    is left alone and only exchanged.
    """
    for module in root.modules():
        if parametrize.is_parametrized(module):
            _fold(module)
        for hook in _norms(module):
            _unhook(module, hook)
    return root


def is_parametrized(root: nn.Module) -> bool:
    """Whether some tensor is computed from others, as `fold_parametrizations` undoes it."""
    return any(parametrize.is_parametrized(module) or _norms(module) for module in root.modules())


def _norms(module: nn.Module) -> list[WeightNorm | SpectralNorm]:
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)]


def _unhook(module: nn.Module, hook: WeightNorm | SpectralNorm) -> None:
    if isinstance(hook, WeightNorm):
        trained = module.get_parameter(f"{hook.name}_v").requires_grad
        remove_weight_norm(module, hook.name)
    else:
        trained = module.get_parameter(f"{hook.name}_orig").requires_grad
        remove_spectral_norm(module, hook.name)
        _forget_checkpoints(module)
    module.get_parameter(hook.name).requires_grad_(trained)


def _forget_checkpoints(module: nn.Module) -> None:
    """Drop the hook that asks checkpoints for a spectral norm's tensors: torch wraps it, and then does not find it."""
    for key, held in list(module._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(held, "hook", held), SpectralNormLoadStateDictPreHook):
            del module._load_state_dict_pre_hooks[key]


def _fold(module: nn.Module) -> None:
    held: nn.ModuleDict = module.parametrizations.eval()  # type: ignore[assignment,union-attr]
    trained = {name: [p.requires_grad for p in held[name].parameters(recurse=False)] for name in held}
    values = {name: getattr(module, name).detach().clone() for name in held}
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, value in values.items():
        if trained[name]:
            module.register_parameter(name, nn.Parameter(value, any(trained[name])))
        else:
            module.register_buffer(name, value)
    _list_again(module)


def _list_again(module: nn.Module) -> None:
    """A recurrent layer keeps its own list of its tensors."""
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
