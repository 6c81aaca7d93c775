"""llama.cpp, and what is built on it: decoders of transformers as GGUF."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.encodings import Encoding, Float16, Int
from lilliput.errors import InputError, not_installed
from lilliput.exporters import gguf
from lilliput.measure import Latencies, interleaved
from lilliput.model.edits.edit import Edit
from lilliput.model.views.inputs import Dynamic, Inputs
from lilliput.model.views.signature import Signature
from lilliput.model.views.view import Call, View
from lilliput.recipe import Recipe
from lilliput.targets.target import Preferences, Runner, Runtime, Target, Writer
from lilliput.techniques.quantize import Quantize
from lilliput.techniques.run import Placed, Wanted

_LEAST_CONTEXT = 256  # tokens that a model is opened for; longer inputs open it anew
_TOKENS, _MASK = "input_ids", "attention_mask"


class GgufPreferences(Preferences):
    """Blocks of 32 weights; what flows is rounded by the kernels themselves."""

    multiple: ClassVar[int] = gguf.BLOCK

    def recipe(self, view: View, calibrated: bool) -> Recipe:
        """Q4_0 for linear layers, Q8_0 for the table and the head, which each token goes through alone."""
        layers = {path.rpartition(".")[0]: used[0] for path, used in view.weights.items()}
        ends = sorted(path for path, call in layers.items() if call.op == "embedding" or path.endswith("lm_head"))
        four, eight = (Int(bits, group=gguf.BLOCK, scale=Float16()) for bits in (4, 8))
        steps = [Quantize(weights=four, where=("*", *(f"!{path}" for path in ends)))]
        return Recipe([*steps, Quantize(weights=eight, where=tuple(ends))] if ends else steps)

    def prepare(self, view: View, root: nn.Module) -> Iterable[tuple[Edit, Mapping[str, Tensor]]]:
        """Nothing: llama.cpp knows the network by the names of its tensors."""
        return ()

    def place(self, view: View, wanted: Wanted) -> Placed:
        """Nothing: no file says how values that flow are rounded."""
        why = "what it reads stays as it is: GGUF has no place for ranges, and llama.cpp rounds to 8 bits by itself"
        return Placed([], dict.fromkeys(wanted.activations, why))

    def remark(
        self, call: Call, weight: Encoding | None, activation: Encoding | None, others: Sequence[Encoding | None] = ()
    ) -> str:
        if weight is None or not isinstance(weight, Int):
            return "float"
        if call.op == "embedding":
            return "rows are decoded as they are looked up"
        return "integer blocks; what it reads is rounded to 8 bits, block by block"


@dataclass(frozen=True)
class GgufWriter(Writer):
    """The file of llama.cpp, with config and tokenizer."""

    tokenizer: Any = None

    format: ClassVar[str] = "gguf"
    whole: ClassVar[bool] = False

    def build(self, path: Path, model: nn.Module, example: Inputs, dynamic: Dynamic) -> None:
        gguf.write(path, model, self.tokenizer)


@dataclass(frozen=True)
class LlamaCpp(Runtime):
    """llama.cpp on a CPU: logits of every token, each sample by itself."""

    threads: int

    def open(self, built: Path | bytes, signature: Signature, module: nn.Module | None = None) -> Runner:
        if isinstance(built, bytes):
            raise InputError("llama.cpp opens files", where="graph", next="save_gguf writes one")
        if signature.count != 1:
            raise InputError(
                f"llama.cpp answers with logits alone, and the network gives {signature.count} tensors",
                where=built.name,
                next="switch caches off: model.config.use_cache = False",
            )
        held = _Held(built, self.threads)

        def run(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(signature.inputs, signature.arguments(Inputs.given(args, kwargs)), strict=True))
            return signature.assemble([torch.stack([held.logits(ids) for ids in _tokens(given)])])

        return run

    def latencies(self, runs: Mapping[str, Runner], example: Inputs, seconds: float) -> Latencies:
        subjects = {name: functools.partial(example.call, run) for name, run in runs.items()}
        return interleaved(subjects, budget_s=seconds, threads=self.threads)


@dataclass
class _Held:
    """A file as llama.cpp holds it, opened for as many tokens as it was asked for."""

    path: Path
    threads: int
    context: int = 0
    model: Any = None

    def logits(self, ids: Sequence[int]) -> Tensor:
        """[tokens, vocabulary], computed in one batch."""
        if len(ids) > self.context:
            self.context = max(_LEAST_CONTEXT, 1 << math.ceil(math.log2(len(ids))))
            sizes = {"n_ctx": self.context, "n_batch": self.context, "n_ubatch": self.context}
            threads = {"n_threads": self.threads, "n_threads_batch": self.threads}
            self.model = _llama_cpp().Llama(str(self.path), **sizes, **threads, logits_all=True, verbose=False)
        self.model.reset()
        self.model.eval(ids)
        return torch.from_numpy(np.array(self.model.scores[: len(ids)]))


def _tokens(given: Mapping[str | int, Tensor]) -> list[list[int]]:
    """The samples of a call [batch, tokens], all of whose tokens are there."""
    mask = given.get(_MASK)
    if mask is not None and not bool(mask.bool().all()):
        raise InputError(
            "leaves tokens out, which llama.cpp is not told", where=_MASK, next="give samples without padding"
        )
    others = [key for key in given if key not in (_TOKENS, _MASK, 0)]
    ids = given.get(_TOKENS, given.get(0))
    if others or ids is None or ids.dim() != 2 or ids.is_floating_point():
        raise InputError(
            f"llama.cpp is given token numbers [batch, tokens] alone, and the call has {', '.join(map(repr, given))}",
            next="give an example of input_ids",
        )
    return ids.tolist()


def _llama_cpp() -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        alone = "write the file alone by lilliput.formats.save_gguf"
        raise not_installed("llama-cpp-python", error=error, otherwise=alone) from None
    return llama_cpp


@dataclass(frozen=True)
class Gguf(Target):
    """llama.cpp on a CPU, for decoders of transformers that give logits of every token.

    Weights are written as blocks of GGUF have them (`lilliput.formats.save_gguf` says which); by default linear layers
    as Q4_0, the table and the head as Q8_0. What flows stays as it is. `tokenizer` travels in the file.

    Raises InputError where `gguf` or `llama-cpp-python` is not installed.

    >>> Gguf(threads=1).writes.format
    'gguf'
    """

    tokenizer: Any = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "gguf"

    def check(self) -> None:
        super().check()
        gguf.package()
        _llama_cpp()

    @property
    def prefers(self) -> GgufPreferences:
        return GgufPreferences()

    @property
    def writes(self) -> GgufWriter:
        return GgufWriter(self.tokenizer)

    @property
    def runs(self) -> LlamaCpp:
        return LlamaCpp(self.threads_used)
