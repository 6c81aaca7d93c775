"""The tensors of a module that no `state_dict` lists: buffers that are not persistent, and plain attributes.

A constructor may make them anew, and may make others (at random, say); a file that is to give the same module bit for
bit holds them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lilliput.errors import FormatError
from lilliput.model.carrier.encoded_tensor import EncodedTensor
from lilliput.model.edits.edit import SAME
from lilliput.model.names import attribute_name
from lilliput.model.views.values import ValueEncoder, ValueEncodings

_LONGEST = 256  # characters of an attribute's name

Place = tuple[str | int, ...]  # of an attribute: module path, attribute, then indices and keys within it


def named(root: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a module by the name that a file gives it, however many names one has.

    >>> list(named(nn.Linear(4, 2)))
    ['weight', 'bias']
    """
    state = {name: x for name, x in root.state_dict().items() if isinstance(x, Tensor)}
    plain = {attribute_name(place): x.detach() for place, x in attributes(root).items()}
    return {**state, **passing_buffers(root), **plain}


def passing_buffers(root: nn.Module) -> dict[str, Tensor]:
    """The buffers that are not persistent, by path."""
    return {
        f"{path}.{name}" if path else name: held
        for path, module in root.named_modules(remove_duplicate=False)
        for name in sorted(module._non_persistent_buffers_set)
        if (held := module._buffers.get(name)) is not None
    }


def attributes(root: nn.Module) -> dict[Place, Tensor]:
    """Tensors that are attributes of a module, or lie in a list, tuple or dict that is one."""
    registered = {id(x) for x in (*root.parameters(), *root.buffers())}
    found: dict[Place, Tensor] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        if isinstance(module, EncodedTensor):
            continue
        for name, value in vars(module).items():
            if name in _OF_TORCH:
                continue
            for place, x in _inside(value, (path, name)):
                if id(x) not in registered:
                    found[place] = x
    return found


_OF_TORCH = frozenset(vars(nn.Module())) | {"_flat_weights"}
_OURS = frozenset(
    ("_lilliput_structure", "_lilliput_configs", "_lilliput_reshaped", "_order_of_tensors")
)  # what is noted in modules besides


def _inside(value: Any, place: Place) -> Iterator[tuple[Place, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
        return
    items: Any = ()
    if type(value) in (list, tuple):
        items = enumerate(value)
    elif type(value) is dict:
        items = ((key, held) for key, held in value.items() if type(key) in (str, int))
    for key, held in items:
        yield from _inside(held, (*place, key))


def give_buffer(root: nn.Module, path: str, x: Tensor) -> None:
    """Put a buffer that is not persistent back into its place."""
    owner, name = _module(root, path.rpartition(".")[0]), path.rpartition(".")[2]
    if name not in owner._non_persistent_buffers_set:
        raise FormatError(f"{type(owner).__name__} has no such buffer", where=path, next="give the constructor used")
    held = owner._buffers[name]
    _check_shape(held, x, path)
    owner._buffers[name] = x if held is None or held.is_meta else x.to(held.device)


def give_attribute(root: nn.Module, place: Sequence[Any], x: Tensor) -> None:
    """Put a tensor that is an attribute back into its place; one that the constructor leaves out is set anew."""
    path, name, *inner = place
    owner, where = _module(root, path), ".".join(map(str, place))
    held = vars(owner)
    if isinstance(owner, EncodedTensor | ValueEncoder | ValueEncodings):
        raise FormatError("leads into an encoding", where=where)
    if name not in held and not inner and _free(owner, name):
        held[name] = x
        return
    if name not in held or name in _OF_TORCH:
        raise FormatError(f"{type(owner).__name__} has no such attribute", where=where)
    held[name] = _exchanged(held[name], inner, x, where)


def _exchanged(value: Any, place: Sequence[Any], x: Tensor, where: str) -> Any:
    """`value` with the tensor at `place` in it exchanged; lists and dicts stay the objects they were."""
    if not place:
        if value is not None and not isinstance(value, Tensor):
            raise FormatError(f"a {type(value).__name__} where the file has a tensor", where=where)
        _check_shape(value, x, where)
        return x if value is None or value.is_meta else x.to(value.device)
    key, *rest = place
    known = isinstance(value, Mapping) and key in value
    if not known and not (type(value) in (list, tuple) and type(key) is int and 0 <= key < len(value)):
        raise FormatError(f"no place {key!r} in a {type(value).__name__}", where=where)
    inner = _exchanged(value[key], rest, x, where)
    if type(value) is tuple:
        return (*value[:key], inner, *value[key + 1 :])
    value[key] = inner
    return value


def _free(owner: nn.Module, name: str) -> bool:
    """Whether an attribute called so hides nothing of the class or of torch."""
    taken = {*owner._parameters, *owner._buffers, *owner._modules, *_OF_TORCH, *_OURS}
    return (
        len(name) <= _LONGEST
        and name.isidentifier()
        and not name.startswith("__")
        and not hasattr(type(owner), name)
        and name not in taken
    )


def _module(root: nn.Module, path: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError:
        raise FormatError("the model has no such module", where=path, next="give the constructor used") from None


def _check_shape(held: Tensor | None, x: Tensor, where: str) -> None:
    if held is not None and held.shape != x.shape:
        raise FormatError(
            f"has shape {tuple(x.shape)} in the file and {tuple(held.shape)} in the module",
            where=where,
            next=SAME,
        )
