"""Batches as they are read from what the user gives, each with its place."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from lilliput.errors import InputError, LilliputError, reason
from lilliput.feeding.rows import Collate, Rows, holds_samples


def batched(source: Any, collate: Collate | None = None, *, shuffle: bool = False) -> Any:
    """`source` as a source of batches: samples of a dataset are collated, all else stays as it is.

    Raises InputError for a `collate` that cannot be called.
    """
    if collate is not None and not callable(collate):
        raise InputError(
            f"is a {type(collate).__name__}", where="collate", next="give a function from samples to a batch"
        )
    return Rows(source, collate, shuffle) if holds_samples(source, collate) else source


def read_batches(source: Iterable[Any], field: str) -> Iterator[tuple[str, Any]]:
    """What the source of one field gives, each batch with its place, such as ``train[3]``.

    Raises InputError for what is no source of batches, and where the source fails.
    """
    batches = _opened(source, field)
    for i in itertools.count():
        where = f"{field}[{i}]"
        try:
            batch = next(batches)
        except StopIteration:
            return
        except LilliputError:
            raise
        except Exception as error:  # the user's own loader
            raise _unreadable(where, error) from error
        yield where, batch


def _opened(source: Any, field: str) -> Iterator[Any]:
    whole = {"tensor": Tensor, "array": np.ndarray, "dict": Mapping}
    for kind, types in whole.items():
        if isinstance(source, types):
            raise InputError(f"is one {kind}", where=field, next=f"give a list of batches: [{kind}]")
    try:
        return iter(source)
    except TypeError:
        raise InputError(f"is of type {type(source).__name__}", where=field, next="give a list of batches") from None
    except Exception as error:
        raise _unreadable(field, error) from error


def _unreadable(where: str, error: Exception) -> InputError:
    return InputError("cannot be read", where=where, why=reason(error), next="repair the data or what loads it")
