"""A file that holds only what differs from another: its base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lilliput.entropy import Array, bound
from lilliput.file.container import Part, Reader
from lilliput.file.delta import difference


def against(base: Reader, arrays: Mapping[str, Array], parts: Iterable[Part]) -> tuple[list[Part], dict[str, Any]]:
    """The parts to write beside `base`, and what the header says of it; `arrays` are what the parts hold.

    A tensor of the same name, type and shape there is left out where it is equal, and written as the difference where
    that has fewer bytes.
    """
    kept, references, deltas = list[Part](), dict[str, str](), dict[str, str]()
    for part in parts:
        x, there = arrays[part.name], base.entries.get(part.name)
        if there is None or (there.dtype, there.shape, there.bits) != (part.dtype, part.shape, part.bits_held):
            kept.append(part)
            continue
        earlier = base.read(part.name)
        apart = difference(x, earlier, part.bits_held)
        if earlier.tobytes() == x.tobytes():
            references[part.name] = part.name
        elif bound(apart.reshape(-1)) < bound(np.ascontiguousarray(x).reshape(-1)):
            deltas[part.name] = part.name
            kept.append(Part.of(part.name, apart, part.bits))
        else:
            kept.append(part)
    if not references and not deltas:
        return kept, {}
    return kept, {"base": base.digest, "references": references, **({"deltas": deltas} if deltas else {})}
