"""What the names of tensors in a `.lil` begin with that are none of a module's own."""

from __future__ import annotations

GRAPH = ":graph"  # the graph itself; and after a colon, what belongs to it alone
ASSET = ":asset:"  # files that travel along
HEAD = ":head:"  # the first bytes of safetensors files


def apart(name: str) -> bool:
    """Whether a tensor of this name is none of the model's.

    >>> apart(":graph"), apart(":graph:w"), apart(":asset:vocab.txt"), apart(":odd.weight")
    (True, True, True, False)
    """
    return name == GRAPH or name.startswith((f"{GRAPH}:", ASSET, HEAD))
