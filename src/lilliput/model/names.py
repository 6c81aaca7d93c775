"""What files call the tensors of a module that no `state_dict` lists; without torch."""

from __future__ import annotations

ATTRIBUTE = ":attribute"  # what the names of attributes begin with


def attribute_name(place: tuple[str | int, ...]) -> str:
    """What a file calls an attribute, or what lies within one.

    >>> attribute_name(("layers.0", "masks", 2))
    ':attribute:layers.0:masks:2'
    """
    return ":".join((ATTRIBUTE, *map(str, place)))
