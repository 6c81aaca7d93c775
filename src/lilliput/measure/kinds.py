"""What an answer is, and what is then compared of it, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lilliput.outputs import finite

Kind = Literal["classes", "values", "embedding", "tokens"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Score: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # a reference and an output [samples, …] -> [samples]

_LEAST_LOG = -700.0  # of a probability that float64 still tells from none


def same_answer(reference: Tensor, output: Tensor) -> Tensor:
    """Whether the largest of the classes is the same; the share of places where there are some.

    Both are [samples, classes, …]. A NaN among the output's classes is another answer.

    >>> same_answer(torch.tensor([[0.1, 0.9], [0.9, 0.1]]), torch.tensor([[1.0, 9.0], [0.0, 1.0]]))
    tensor([1., 0.], dtype=torch.float64)
    """
    same = (reference.argmax(1) == output.argmax(1)) & ~output.isnan().any(1)
    return same.double().reshape(len(reference), -1).mean(1)


def cosine(reference: Tensor, output: Tensor) -> Tensor:
    """Of vectors [samples, …, width], their mean over a sample; two of zeros are alike, one alone is unlike any.

    >>> cosine(torch.tensor([[3.0, 4.0]]), torch.tensor([[30.0, 40.0]]))
    tensor([1.], dtype=torch.float64)
    """
    a, b = (finite(x.double()) for x in (reference, output))
    lengths = a.norm(dim=-1) * b.norm(dim=-1)
    found = ((a * b).sum(-1) / lengths.clamp_min(torch.finfo(torch.float64).tiny)).clamp(-1, 1)
    alike = (a.norm(dim=-1) == 0) & (b.norm(dim=-1) == 0)
    return torch.where(alike, 1.0, found).reshape(len(a), -1).mean(1)


def norm_ratio(reference: Tensor, output: Tensor) -> Tensor:
    """The length of a sample [samples, …] over that of the reference's, which a cosine does not see.

    >>> norm_ratio(torch.tensor([[3.0, 4.0]]), torch.tensor([[30.0, 40.0]]))
    tensor([10.], dtype=torch.float64)
    """
    ours, theirs = (finite(x.double()).reshape(len(x), -1).norm(dim=1) for x in (reference, output))
    least = 1e-6 * ours.max().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where((ours == 0) & (theirs == 0), 1.0, theirs / ours.clamp_min(least))


def same_token(reference: Tensor, output: Tensor) -> Tensor:
    """The share of a sample's tokens whose most likely word is the same, of logits [samples, tokens, vocabulary]."""
    return same_answer(reference.movedim(-1, 1), output.movedim(-1, 1))


def divergence(reference: Tensor, output: Tensor) -> Tensor:
    """KL(reference ‖ output) of the next word in nats, the mean over a sample's tokens, of logits.

    >>> divergence(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)).item()
    0.0
    """
    ours, theirs = (x.double().log_softmax(-1).clamp_min(_LEAST_LOG) for x in (reference, output))
    found = (ours.exp() * (ours - theirs)).nan_to_num(nan=0.0).sum(-1)
    return found.reshape(len(ours), -1).mean(1).clamp_min(0)


FIGURES: Mapping[Kind, Mapping[str, Score]] = {  # of each kind, beside the error that all have
    "classes": {"same_answer": same_answer},
    "values": {},
    "embedding": {"cosine": cosine, "norm_ratio": norm_ratio},
    "tokens": {"same_token": same_token, "divergence": divergence},
}


def misfit(kind: Kind, shape: tuple[int, ...]) -> str:
    """Why an output of this shape cannot be of that kind; empty where it can.

    >>> misfit("classes", (8, 1000)), misfit("tokens", (8, 1000))
    ('', 'tokens are [samples, tokens, vocabulary]')
    """
    fits = {
        "classes": len(shape) >= 2 and shape[1] >= 2,
        "values": True,
        "embedding": len(shape) >= 2 and shape[-1] >= 2,
        "tokens": len(shape) == 3 and shape[-1] >= 2,
    }
    wanted = {
        "classes": "classes are [samples, two or more, …]",
        "embedding": "an embedding is [samples, …, two or more]",
        "tokens": "tokens are [samples, tokens, vocabulary]",
    }
    return "" if fits[kind] else wanted[kind]
