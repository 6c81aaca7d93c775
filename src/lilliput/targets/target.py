"""A runtime that will run the result: what it wants, how to build for it, how to open what was built."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lilliput.encodings import Encoding
from lilliput.errors import InputError
from lilliput.measure import Latencies
from lilliput.model.edits.edit import Edit
from lilliput.model.views.inputs import Dynamic, Inputs
from lilliput.model.views.signature import Signature
from lilliput.model.views.view import Call, View
from lilliput.recipe import Recipe
from lilliput.targets.operators import Operator
from lilliput.techniques.run import Placed, Wanted

Runner = Callable[..., Any]  # called like the module, answers like the module


@dataclass(frozen=True)
class Target(ABC):
    """A runtime. What it prefers reaches techniques as data: placements, and remarks on encodings."""

    threads: int | None = None  # of the runtime while it is measured; None: as many as there are cores
    seconds: float = 60.0  # at most, for timing before and after; fewer give wider intervals, 0 no timing at all

    name: ClassVar[str]
    format: ClassVar[str]  # ending of the file that it runs; "lil": the one that is stored and sent
    whole: ClassVar[bool] = True  # whether it needs the network captured as one graph

    @property
    def threads_used(self) -> int:
        return self.threads or os.cpu_count() or 1

    def check(self) -> None:
        """Refuse, before any work, numbers that make no sense, and what is not there to run or time the result."""
        seconds, threads = self.seconds, self.threads
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
            raise InputError(f"is {seconds!r}", where="seconds", next="give a number of seconds, such as 20")
        if threads is not None and (type(threads) is not int or threads < 1):
            raise InputError(f"is {threads!r}", where="threads", next="give a whole number from 1 on, or None")

    @property
    def times(self) -> bool:
        """Whether it is to time at all."""
        return self.seconds > 0

    @property
    def multiple(self) -> int:
        """What it likes numbers of channels to be multiples of, on any machine: so a recipe gives one network."""
        return 8

    @property
    def multiple_here(self) -> int:
        """What the kernels of this machine take at once, as far as that is known: for times that are measured."""
        return self.multiple

    @abstractmethod
    def recipe(self, view: View, calibrated: bool) -> Recipe:
        """What to do with a model about which the user says nothing more."""

    @abstractmethod
    def prepare(self, view: View, root: nn.Module) -> Iterable[tuple[Edit, Mapping[str, Tensor]]]:
        """Edits that change how the model is written but not what it computes, wanted before encoding."""

    @abstractmethod
    def place(self, view: View, wanted: Wanted) -> Placed:
        """The values to encode beside weights: those with which layers run on integers, where that pays.

        Of numbers, or beside weights, that no kernel computes with: what each layer reads (`simulated`, `Placing`).
        Whatever is then left in float is told with the reason.
        """

    @abstractmethod
    def remark(
        self, call: Call, weight: Encoding | None, activation: Encoding | None, others: Sequence[Encoding | None] = ()
    ) -> str:
        """What the runtime will do with a weight so encoded, in a few words; `others` are those of the same call."""

    @abstractmethod
    def build(
        self,
        path: Path,
        model: nn.Module,
        example: Inputs,
        dynamic: Dynamic,
    ) -> None:
        """Write the file that the runtime loads."""

    @property
    @abstractmethod
    def opened_by(self) -> str:
        """The name of the target that opens what is built, here, without the source; empty where none does."""

    @abstractmethod
    def latencies(self, runs: Mapping[str, Runner], example: Inputs) -> Latencies:
        """What each of `runs`, opened by this target, takes on the example, in turns, in at most `seconds`."""

    def timed(self, networks: Mapping[str, nn.Module], example: Inputs, dynamic: Dynamic) -> Latencies:
        """What each network takes on the example once it is built and opened, in turns."""
        with tempfile.TemporaryDirectory() as folder:
            runs = {}
            for name, net in networks.items():
                path = Path(folder) / f"{name}.{self.format}"
                self.build(path, net, example, dynamic)
                with torch.no_grad():
                    signature = Signature.of(example, example.call(net), net.forward)
                runs[name] = self.opened(path, signature, net)
            return self.latencies(runs, example)

    @abstractmethod
    def operators(self, built: Path, signature: Signature, example: Inputs) -> Sequence[Operator]:
        """What the runtime makes of the file, each operator timed on the example; empty where it does not tell."""

    @abstractmethod
    def reference(self, built: Path, signature: Signature, *, rounded: bool) -> Runner | None:
        """What a file says, computed in float and with nothing fused; None where nothing here computes so.

        Without `rounded`, what flows is cut to its range and keeps its fractions.
        """

    @abstractmethod
    def open(self, built: Path | bytes, signature: Signature) -> Runner:
        """What was built, in a file or in memory, as a callable that is called and answers as the module does."""

    def opened(self, built: Path, signature: Signature, module: nn.Module) -> Runner:
        """`open`, with the module that it was built of at hand, for a target that runs that."""
        return self.open(built, signature)
