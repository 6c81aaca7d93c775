"""A target in three: what a runtime prefers, how a graph is written for it, and what runs that here."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from lilliput.encodings import Encoding
from lilliput.errors import ExportError, InputError
from lilliput.measure import Latencies
from lilliput.model.edits.edit import Edit
from lilliput.model.views.inputs import Dynamic, Inputs
from lilliput.model.views.signature import Signature
from lilliput.model.views.view import Call, View
from lilliput.recipe import Recipe
from lilliput.runtimes.loaded import Runner as Runner
from lilliput.targets.operators import Operator
from lilliput.techniques.run import Placed, Wanted

NOT_HERE = "not run here"  # why a target times nothing
BY_REFERENCE = "answers are those of reference kernels, which compute the file as it is written"


class Preferences(ABC):
    """What a runtime prefers. It reaches techniques as data: placements, and remarks on encodings."""

    multiple: ClassVar[int] = 8  # of numbers of channels, on any machine: so a recipe gives one network

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


class Writer(ABC):
    """How a network is written as a file, and what that file says."""

    format: ClassVar[str]  # ending of the file; "lil": the one that is stored and sent
    whole: ClassVar[bool] = True  # whether it needs the network captured as one graph
    opened_by: str = ""  # the name of the target that opens such a file, here, without the source; empty: none does

    @abstractmethod
    def build(self, path: Path, model: nn.Module, example: Inputs, dynamic: Dynamic) -> None:
        """Write the file, and let a validator read it where there is one.

        Raises ExportError for what cannot be written, or what whoever is to read it does not take.
        """

    def reference(self, built: Path, signature: Signature, *, rounded: bool) -> Runner | None:
        """What a file says, computed in float and with nothing fused; None where nothing here computes so.

        Without `rounded`, what flows is cut to its range and keeps its fractions.
        """
        return None


class Runtime(ABC):
    """What runs a written file, on this machine or on another that can be reached from it."""

    @property
    def multiple(self) -> int | None:
        """How many channels its kernels take at once where it runs; None: not known."""
        return None

    @abstractmethod
    def open(self, built: Path | bytes, signature: Signature, module: nn.Module | None = None) -> Runner:
        """What was built, in a file or in memory, as a callable that is called and answers as the module does.

        `module` is what it was built of, where that is at hand, for a runtime that runs that.
        """

    @abstractmethod
    def latencies(self, runs: Mapping[str, Runner], example: Inputs, seconds: float) -> Latencies:
        """What each of `runs`, opened here, takes on the example, in turns, in at most `seconds`."""

    def operators(self, built: Path, signature: Signature, example: Inputs, seconds: float) -> Sequence[Operator]:
        """What it makes of the file, each operator timed on the example; empty where it does not tell."""
        return ()


@dataclass(frozen=True)
class Target(ABC):
    """Where a network is to run: the user's settings, and the three parts that they make."""

    threads: int | None = None  # of the runtime while it is measured; None: as many as there are cores
    seconds: float = 60.0  # at most, for timing before and after; fewer give wider intervals, 0 no timing at all

    name: ClassVar[str]

    @property
    @abstractmethod
    def prefers(self) -> Preferences:
        """What it likes numbers of channels, and encodings, to be."""

    @property
    @abstractmethod
    def writes(self) -> Writer:
        """How the file that it runs is written."""

    @property
    @abstractmethod
    def runs(self) -> Runtime | None:
        """What runs that file; None: nothing here, so it is compared as it is written, and never timed."""

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
    def untimed(self) -> str:
        """Why it times nothing; empty where it does."""
        if self.runs is None:
            return NOT_HERE
        return "" if self.seconds > 0 else "seconds=0"

    @property
    def multiple_here(self) -> int:
        """What the kernels take at once where it runs, as far as that is known: for times that are measured."""
        return (None if self.runs is None else self.runs.multiple) or self.prefers.multiple

    def opened(self, built: Path, signature: Signature, module: nn.Module | None = None) -> Runner:
        """What was built of `module`, by what runs it, or, where nothing here does, as it is written.

        Raises ExportError where neither can.
        """
        if self.runs is not None:
            return self.runs.open(built, signature, module)
        run = self.writes.reference(built, signature, rounded=True)
        if run is None:
            raise ExportError(
                f"nothing here computes what {self.name} writes, so it cannot be compared with the module",
                where=built.name,
                why="no target here runs it, and no reference kernels take it as it is written",
                next="leave the formats of numbers out that they do not take, or give the target something that runs",
            )
        return run

    def timed(self, networks: Mapping[str, nn.Module], example: Inputs, dynamic: Dynamic) -> Latencies:
        """What each network takes on the example once it is built and opened, in turns."""
        if self.runs is None:
            return Latencies({}, untimed=self.untimed)
        with tempfile.TemporaryDirectory() as folder:
            runs = {}
            for name, net in networks.items():
                path = Path(folder) / f"{name}.{self.writes.format}"
                self.writes.build(path, net, example, dynamic)
                with torch.no_grad():
                    signature = Signature.of(example, example.call(net), net.forward)
                runs[name] = self.runs.open(path, signature, net)
            return self.runs.latencies(runs, example, self.seconds)
