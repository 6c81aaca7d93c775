"""How encodings live in a module: a child beside the tensor's name, and a property under the name that decodes it.

The tensor ``weight`` of a layer lives in its child ``weight_encoded``. (A child of the very same name would hide behind
the property from everything in torch that walks paths by attribute: `functional_call`, and with it `torch.export`.)
The module keeps its type: its class becomes a memoised subclass, made once for each (class, tensor names), that is
never changed afterwards, and tells the user's code nothing of such children (`unseen.py`). Copying, pickling,
`state_dict`, `torch.export` and training therefore work as for any module.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lilliput.encodings import Encoded
from lilliput.errors import EncodingError
from lilliput.model.carrier.duplicate import duplicate
from lilliput.model.carrier.encoded_tensor import SUFFIX, EncodedTensor, tie_learnt
from lilliput.model.carrier.forward import Forward
from lilliput.model.carrier.saving import METHOD, RESHAPED, saves_itself, saving_dense
from lilliput.model.carrier.unseen import unseen

VALUES = "value_encodings"  # the root's child that holds the encodings of values that flow
_ORDER = "_order_of_tensors"  # attribute of a module with encoded tensors: its parameters' names as they stood


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
        **unseen(base, frozenset({name + SUFFIX for name in names} | ({VALUES} if values else set()))),
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
    return object.__new__(cls)  # fx would take a class of its own, by the name of ours


def become(module: nn.Module, names: tuple[str, ...], values: bool | None = None) -> None:
    """Give `module` the class that carries the tensors `names` (and values that flow, where it is a root).

    One that writes its own checkpoints keeps it as long as anything inside is encoded.
    """
    base = plain_class(module)
    carries = getattr(type(module), "encodes_values", False) if values is None else values
    own = carries and "forward" in vars(module)
    carrying = encoded_class(base, tuple(sorted(names)), carries, own)  # type: ignore[arg-type]
    within = saves_itself(base) and (
        RESHAPED in vars(module) or any(isinstance(held, EncodedTensor) for held in module.modules())
    )
    module.__class__ = carrying if names or carries or within else base


def _become_saved(root: nn.Module, path: str) -> None:
    """Let the modules around the encoded tensor at `path` that write their own checkpoints write what it decodes to."""
    names = path.split(".")[:-1]
    for depth in range(len(names) + 1):
        module = root.get_submodule(".".join(names[:depth]))
        if saves_itself(type(module)) and plain_class(module) is type(module):
            become(module, ())


def note_reshaped(root: nn.Module) -> None:
    """Let the modules of `root` that write their own checkpoints know that their class may make others."""
    for module in root.modules() if RESHAPED not in vars(root) else ():
        if module is root or saves_itself(type(module)):
            vars(module)[RESHAPED] = True
            become(module, encoded_names(module))


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
                "a parametrized tensor",
                where=path,
                next="fold it first, by fold_parametrizations",
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


def unfreeze(root: nn.Module, learn: bool = False) -> nn.Module:
    """Make encoded tensors trainable: each holds a latent parameter whose projection the module sees.

    With `learn`, what their encodings name learnable (scales, offsets, levels) is trained too, and that of values that
    flow. Do this before the optimizer is built (and before FSDP wraps the module); `freeze` when the training is over.
    """
    shared = _shared_parts(root)
    for held in _encoding(root):
        held.unfreeze(learn)  # type: ignore[operator]
    for (first, part), *others in shared if learn else ():
        for other, _ in others:  # what is one stays one
            tie_learnt(other, first, part.partition(".")[0])
    return root


def freeze(root: nn.Module) -> nn.Module:
    """Store the codes of trained tensors again, and what was learnt beside them; drop their latent parameters."""
    shared = _shared_parts(root)
    for held in _encoding(root):
        held.freeze()  # type: ignore[operator]
    for (first, part), *others in shared:
        owner, _, name = part.rpartition(".")
        for other, _ in others:
            other.get_submodule(owner)._buffers[name] = first.get_buffer(part)
    return root


def _shared_parts(root: nn.Module) -> list[list[tuple[EncodedTensor, str]]]:
    """The parts that several encoded tensors hold in one memory, such as a list of numbers, with who holds them."""
    found: dict[tuple[int, str], list[tuple[EncodedTensor, str]]] = {}
    for _, held in encoded_tensors(root):
        for name, part in held.named_buffers():
            if part.numel():
                found.setdefault((part.data_ptr(), name), []).append((held, name))
    return [holders for holders in found.values() if len(holders) > 1]


def _encoding(root: nn.Module) -> Iterator[nn.Module]:
    """What holds an encoding: of a tensor, or of a value that flows."""
    yield from (held for _, held in encoded_tensors(root))
    for module in root.modules():
        if getattr(type(module), "encodes_values", False):
            yield from module._modules[VALUES].children()  # type: ignore[union-attr]


def to_dense(root: nn.Module) -> nn.Module:
    """A copy of `root` in which every tensor is an ordinary parameter, no value encoded, every class the user's own."""
    dense = duplicate(root)
    for module in dense.modules():
        if getattr(type(module), "encodes_values", False):
            del module._modules[VALUES]
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
        list_again(owner)


def list_again(module: nn.Module) -> None:
    """A recurrent layer keeps its own list of its tensors."""
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
