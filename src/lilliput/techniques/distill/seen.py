"""What a forward pass of a model shows to those who compare it with another's."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import InputError, RecipeError, nearest


@dataclass(frozen=True, eq=False)
class Seen:
    """What one forward pass showed."""

    output: Tensor  # the first output, [batch, …, classes]
    taps: Mapping[str, Tensor] = field(default_factory=dict)  # by module path, its first output, [batch, …]
    attention: Mapping[str, Tensor] = field(default_factory=dict)  # by module path, its `attention_of`


def attention_of(output: Any) -> Tensor | None:
    """The attention probabilities in what a module returned: the second of a tuple, of three or four axes.

    They are [batch, heads, queries, keys], or without heads where the module has averaged over them.

    >>> tokens = torch.ones(2, 5, 8)
    >>> attention_of(nn.MultiheadAttention(8, 2, batch_first=True)(tokens, tokens, tokens)).shape
    torch.Size([2, 5, 5])
    """
    second = output[1] if isinstance(output, tuple | list) and len(output) > 1 else None
    return second if isinstance(second, Tensor) and second.is_floating_point() and second.dim() in (3, 4) else None


def check_taps(model: nn.Module, paths: Iterable[str], field: str) -> None:
    """Refuse module paths that the model has not.

    >>> check_taps(nn.TransformerEncoderLayer(8, 2), ["self_atn"], "FitNet, student")
    Traceback (most recent call last):
    lilliput.errors.RecipeError: FitNet, student: there is no module 'self_atn'; did you mean 'self_attn'? (known: ...)
    """
    known = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    for path in paths:
        if path not in known and path != "":
            near = difflib.get_close_matches(path, known, n=8, cutoff=0.0)
            raise RecipeError(f"there is no module {path!r}", where=field, next=nearest(path, near))


def constant(t: Tensor, like: Tensor) -> Tensor:
    """What a teacher showed, in float32 where the student is, without a gradient."""
    return t.detach().to(like.device, torch.float32)


def unlike(s: Tensor, t: Tensor, where: str, next: str) -> InputError:
    """The error for shapes that cannot be compared."""
    shapes = f"the student has shape {tuple(s.shape)}, the teacher {tuple(t.shape)}"
    return InputError(shapes, where=where, next=next)
