"""Nine faults that this library could have, each planted in one function of it, and the tests that see it.

`python tests/faults.py` plants one after the other, runs its tests, and prints as JSON how each ended. Every fault has
a process of its own, forked off one that has imported all that is slow to import, so that none sees another's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "targets"), str(ROOT / "examples")]
_RAISED = ("AssertionError", "ExportError", "Failed")  # `Failed`: what was to be refused was not

Plant = Callable[[], Any]
_STAYS: list[AbstractContextManager[None]] = []  # or else what is planted would be taken out again


def every_scale() -> None:
    from lilliput.encodings.integer import Uniform

    decode = Uniform.decode
    Uniform.decode = lambda self, parts: decode(self, {**parts, "scale": 1.3 * parts["scale"]})  # type: ignore


def zero_point() -> None:
    from lilliput.encodings.integer import Uniform

    decode = Uniform.decode

    def faulty(self: Any, parts: Any) -> Any:
        moved = {"offset": parts["offset"] + 1} if parts.get("offset") is not None else {}
        return decode(self, {**parts, **moved})

    Uniform.decode = faulty  # type: ignore[method-assign]


def axis_swapped() -> None:
    """Scales run along their axis the other way."""
    from lilliput.encodings import integer

    spread = integer.spread

    def faulty(parameter: Any, shape: tuple[int, ...], axis: int, group: int) -> Any:
        return spread(parameter.flip(0) if parameter.dim() else parameter, shape, axis, group)

    integer.spread = faulty


def written(name: str) -> Plant:
    """One of the faults that an exporter could have, in all that is built."""

    def plant() -> None:
        import mutants

        _STAYS.append(mutants.exporting(mutants.MUTANTS[name]))
        _STAYS[-1].__enter__()

    return plant


def rounded_down() -> None:
    from lilliput.encodings.integer import Uniform

    codes = Uniform.codes

    def faulty(self: Any, x: Any, parameters: Any) -> Any:
        from lilliput.encodings.integer import spread

        half = spread(parameters["scale"].float(), tuple(x.shape), self.axis, self.group or 0) / 2
        return codes(self, x.float() - half, parameters)

    Uniform.codes = faulty  # type: ignore[method-assign]


def not_rescaled() -> None:
    from lilliput.model.surgery.coupling import masked, rescaling

    rescaling.narrowed = masked.narrowed = lambda coupling, gone: {}  # type: ignore[attr-defined]


def one_too_many() -> None:
    from lilliput.techniques.slices import Cut

    kept = Cut.kept
    Cut.kept = lambda self, *given: tuple(min(n + 1, self.length) for n in kept(self, *given))  # type: ignore


@dataclass(frozen=True)
class Fault:
    plant: Plant
    seen_by: tuple[str, ...]  # tests, of two files at least


_EVEN, _OFFSET = ("[Int(bits=4, symmetric=True, per='channel')]", "[Int(bits=4, symmetric=False, per='channel')]")
_ENCODINGS, _GOLDEN = "tests/contracts/test_encodings.py", "tests/contracts/test_golden.py"
_RUNTIME, _PROFILES = "tests/targets/test_onnxruntime.py", "tests/targets/test_profiles.py"
_DECODED, _ANSWERS = (
    f"{_ENCODINGS}::test_decoding_equals_the_reference",
    f"{_GOLDEN}::test_the_module_answers_as_it_did",
)
_FORMATS = f"{_GOLDEN}::test_every_number_format_answers_as_it_did"
_STATIC = f"{_RUNTIME}::test_images_are_rounded_where_their_padding_is_not_the_kernels[zeros]"
_SAFE = f"{_PROFILES}::test_safe_weights_cannot_overflow_sixteen_bits[static]"

FAULTS: dict[str, Fault] = {
    "every scale times 1.3": Fault(every_scale, (_DECODED + _EVEN, _ANSWERS)),
    "a zero point one too high": Fault(zero_point, (_DECODED + _OFFSET, _FORMATS)),
    "an axis of scales swapped": Fault(axis_swapped, (_DECODED + _EVEN, _ANSWERS)),
    "a bias dropped": Fault(written("a bias dropped"), (_STATIC, _SAFE)),
    "a kernel transposed": Fault(written("a kernel transposed"), (_STATIC, _SAFE)),
    "a range cut to half": Fault(written("a range cut to half"), (_STATIC, _SAFE)),
    "codes rounded down": Fault(
        rounded_down,
        (
            f"{_ENCODINGS}::test_inside_its_range_nothing_moves_by_more_than_half_a_step{_EVEN}",
            "tests/reports/test_groups.py::test_groups_of_72_are_those_computed_by_hand",
        ),
    ),
    "gains of norms not rescaled": Fault(
        not_rescaled,
        (
            "tests/contracts/test_coupling.py::test_an_rms_norm_keeps_its_divisor[torch]",
            "tests/topologies/test_shrink.py::test_a_pruned_norm_answers_as_with_the_same_channels_zero",
        ),
    ),
    "one channel too many kept": Fault(
        one_too_many,
        (
            "tests/topologies/test_shrink.py::test_numbers_of_channels_are_multiples",
            "tests/topologies/test_budgets.py::test_half_of_the_channels_is_half_of_them",
        ),
    ),
}


class _Ended:
    """How each test ended: by what it raised, or nothing."""

    def __init__(self) -> None:
        self.raised: dict[str, list[str]] = {}

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        raised = self.raised.setdefault(item.nodeid.partition("[")[0], [])
        if call.excinfo is not None:
            raised.append(call.excinfo.typename)


def outcome(tests: tuple[str, ...], plant: Plant = lambda: None) -> dict[str, list[str]]:
    """What each of the tests raised, by its name, in a process of its own."""
    import pytest

    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        ended, silent = _Ended(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        plant()
        pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[ended])
        os.write(tell, json.dumps(ended.raised).encode())
        os._exit(0)
    os.close(tell)
    with os.fdopen(told) as told_by_child:
        found = told_by_child.read()
    os.waitpid(child, 0)
    return json.loads(found or "{}")  # type: ignore[no-any-return]


def main() -> None:
    import onnxruntime  # noqa: F401
    import torch

    import lilliput.exporters.onnx
    import lilliput.verbs  # noqa: F401

    torch.set_num_threads(1)
    os.chdir(ROOT)
    chosen = sys.argv[1:] or list(FAULTS)
    every = tuple(dict.fromkeys(test for name in chosen for test in FAULTS[name].seen_by))
    found = {name: outcome(FAULTS[name].seen_by, FAULTS[name].plant) for name in chosen}
    print(json.dumps({"as it is": outcome(every), **found}))


if __name__ == "__main__":
    main()
