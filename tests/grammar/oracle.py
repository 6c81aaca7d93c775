"""What comes of one draw: right, refused by an error of ours, or wrong; and how.

The reference is a twin, made from the same source and never given to Lilliput.
"""

from __future__ import annotations

import copy
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from answers import apart, leaves, sqnr
from recipes import floats_flow, is_fine, weights_alone
from spec import Spec
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from untouched import changed, record, tensors

import lilliput as lp
from lilliput.errors import LilliputError
from lilliput.measure import cpu

LEAST_DB = 8.0  # of what is rounded finely
UNLIKE = {"an outlier", "large weights"}  # but for these, which no range serves well
ROUNDED, COARSELY = 0.15, 0.6  # lengths by which a runtime's integers may depart from their simulation


@dataclass(frozen=True)
class Outcome:
    """`right`, `refused`, `silent` (a wrong answer, or something changed), `foreign` (an error that is not ours)."""

    kind: str
    what: str = ""  # the same for failures of one kind
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.kind in ("silent", "foreign")


class Wrong(Exception):
    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(what, detail)
        self.what, self.detail = what, detail


def judge(spec: Spec) -> Outcome:
    """Compress, save, load, open and export the draw, and hold everything against everything."""
    state = torch.random.get_rng_state()
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="grammar-") as folder:
            warnings.simplefilter("ignore")
            return _judged(spec, Path(folder))
    finally:
        torch.random.set_rng_state(state)


def _judged(spec: Spec, folder: Path) -> Outcome:
    user, twin = spec.build(), spec.build()
    net: nn.Module = user["net"]
    before, data, kept = record(twin["net"]), _batches(spec, user), _batches(spec, twin)
    try:
        with _within(spec, user):
            result = lp.compress(_task(spec, net, data), _recipe(spec), target=_eval(spec.target), folder=folder)
            path = result.save(folder / "small.lil")
            exported = result.export(folder / "small.onnx") if "OpenVino" not in spec.target else None
        outcome = Outcome("right")
    except LilliputError as error:
        result, outcome = None, _refused(error)
    except Exception as error:
        result, outcome = None, _foreign(error)
    try:
        _check_untouched(net, before, data, kept)
        if result is not None:
            _check(spec, user, result, path, exported)
    except Wrong as wrong:
        return Outcome("silent", wrong.what, wrong.detail)
    except LilliputError as error:
        return Outcome("silent", "refused after it was delivered", f"{type(error).__name__}: {error}")
    except Exception as error:
        return _foreign(error)
    return outcome


def _refused(error: LilliputError) -> Outcome:
    if not (error.next or error.why):
        return Outcome("silent", "refused without a remedy", f"{type(error).__name__}: {error}")
    if "please report" in error.next:
        return Outcome("refused", "taken for a fault of ours", str(error))
    return Outcome("refused", type(error).__name__, str(error))


def _foreign(error: Exception) -> Outcome:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/lilliput/" in f.filename]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "outside"
    text = "".join(traceback.format_exception(error)[-1:]).strip().partition("\n")[0]
    lines = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(ours[-4:]))
    return Outcome("foreign", f"{type(error).__name__} in {where}", f"{text} ({lines})")


def _check_untouched(net: nn.Module, before: Mapping[str, Any], data: Any, kept: Any) -> None:
    if place := changed(dict(before), record(net)):
        raise Wrong("the user's module was changed", place)
    if not _same(data, kept):
        raise Wrong("the user's data were changed")


def _check(spec: Spec, user: dict[str, Any], result: lp.results.Result, path: Path, exported: Path | None) -> None:
    calls = _calls(spec)
    model = result.model
    loaded = lp.load(path, into=spec.build()["net"]).eval()
    run = lp.open(path, threads=1)
    dense = _with_the_weights_of(spec, model) if weights_alone(spec.recipe) else None
    if place := changed(tensors(model), tensors(loaded)):
        raise Wrong("the loaded module holds another tensor", place)
    ours = _answers(model, calls())
    if text := _differ(ours, _answers(loaded, calls()), 1e-5):  # kernels round by how a tensor lies in memory
        raise Wrong("the loaded module differs", text)
    if not _overflows(spec) and (text := _differ(ours, _answers(run, calls()), _tolerance(spec))):
        raise Wrong("the opened file differs", text)
    if exported is not None and not _opens(exported):
        raise Wrong("the exported file does not open")
    if dense is not None and (text := _differ(ours, _answers(dense, calls()), 1e-3)):
        raise Wrong("more than weights was changed", text)
    reference = _answers(spec.build()["net"].eval(), calls())
    if text := _shapes(reference, ours):
        raise Wrong("answers otherwise than the original", text)
    if is_fine(spec.recipe) and not UNLIKE & set(spec.oddities) and (found := _least_db(spec, model)) < LEAST_DB:
        raise Wrong("far from the original", f"{found:.1f} dB")
    _check_arguments(spec, model, run)
    _check_apart(user["net"], model, calls)


def _check_arguments(spec: Spec, model: nn.Module, run: Callable[..., Any]) -> None:
    """Every argument has other values: the opened file answers as the module does, or says that it cannot."""
    given = _values(spec, 5, [spec.batches[0]], other=True)
    ours = _answers(model, given)
    try:
        theirs = _answers(run, _values(spec, 5, [spec.batches[0]], other=True))
    except LilliputError:
        return
    if not _overflows(spec) and (text := _differ(ours, theirs, _tolerance(spec))):
        raise Wrong("the opened file ignores an argument", text)


def _check_apart(net: nn.Module, model: nn.Module, calls: Callable[[], list[Any]]) -> None:
    """What is done to the user's module does nothing to the compressed one."""
    first = _answers(copy.deepcopy(model), calls())
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point() and tensor.layout == torch.strided:
                tensor.set_(torch.zeros_like(tensor))  # another storage, and other numbers in the old one
    if text := _differ(first, _answers(copy.deepcopy(model), calls()), 0.0):
        raise Wrong("the compressed module reads the user's", text)


def _with_the_weights_of(spec: Spec, model: nn.Module) -> nn.Module | None:
    """A twin that holds the tensors of the compressed module, where it has the same ones."""
    twin, held = spec.build()["net"].eval(), lp.formats.to_dense(model).state_dict()
    wanted = twin.state_dict()
    if set(held) != set(wanted) or any("Finetune" in step for step in spec.recipe):
        return None
    if any(isinstance(x, Tensor) and x.shape != held[key].shape for key, x in wanted.items()):
        return None
    twin.load_state_dict(held, assign=True)  # a tensor may be a view that cannot be written to
    return twin


def _tolerance(spec: Spec) -> float:
    if floats_flow(spec.recipe):
        return 5e-3
    return COARSELY if any("activations" in step and "Int(8" not in step for step in spec.recipe) else ROUNDED


def _least_db(spec: Spec, model: nn.Module) -> float:
    """Of the answers to what ranges were seen on: of a handful of samples they may cut what comes later."""
    made, twin = spec.build(), spec.build()
    pairs = ((made["net"].eval(), made), (model, twin))
    seen = (_answers(net, _ordinary(_batches(spec, held))) for net, held in pairs)
    return min(map(sqnr, *seen), default=99.0)


def _overflows(spec: Spec) -> bool:
    """Whether integers may overflow, as the report says where 8 bits are asked for; `safe` targets refuse them."""
    wide = any("weights=lp.Int(8" in step and "activations=lp.Int(8" in step for step in spec.recipe)
    return wide and "OpenVino" in spec.target and cpu().may_saturate


def _calls(spec: Spec) -> Callable[[], list[Any]]:
    """Inputs that nobody has seen, of other sizes where these may vary, and the first once more at the end."""
    sizes = spec.batches if spec.dynamic == "fixed" else [spec.batches[0], 3, 1, 5]

    def calls() -> list[Any]:
        return [*_values(spec, 3, sizes), *_values(spec, 3, sizes[:1])]

    return calls


def _batches(spec: Spec, made: Mapping[str, Any]) -> list[Any]:
    torch.manual_seed(spec.seed + 1)
    return [made["batch"](n) for n in spec.batches]


def _values(spec: Spec, seed: int, sizes: list[int], other: bool = False) -> list[Any]:
    made = spec.build()
    torch.manual_seed(spec.seed + seed)
    given = [made["batch"](n, other) for n in sizes]  # which nets write to
    return _ordinary(given)


def _ordinary(given: list[Any]) -> list[Any]:
    """The same, but for tensors of an inference mode, which nothing outside it writes to."""
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) and x.is_inference() else x, given)  # type: ignore[no-any-return]


def _answers(model: Callable[..., Any], calls: list[Any]) -> list[Any]:
    torch.manual_seed(7)
    with torch.no_grad():
        return [_copied(called(model, given)) for given in calls]


def called(model: Callable[..., Any], given: Any) -> Any:
    if isinstance(given, dict):
        return model(**given)
    return model(*given) if isinstance(given, tuple) else model(given)


def _copied(out: Any) -> Any:
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, out)


def _differ(ours: list[Any], theirs: list[Any], tolerance: float) -> str:
    texts = ((i, apart(a, b, tolerance)) for i, (a, b) in enumerate(zip(ours, theirs, strict=True)))
    return next((f"call {i}: {text}" for i, text in texts if text), "")


def _shapes(reference: list[Any], ours: list[Any]) -> str:
    return _differ(_emptied(reference), _emptied(ours), 0.0)


def _emptied(answers: list[Any]) -> list[Any]:
    """How answers are put together, and the zeros that their tensors are."""
    return [{path: torch.zeros_like(x) if isinstance(x, Tensor) else x for path, x in leaves(a)} for a in answers]


def _same(a: Any, b: Any) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


def _opens(exported: Path) -> bool:
    import onnxruntime

    try:
        onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])
    except Exception:  # of many kinds
        return False
    return True


def _task(spec: Spec, net: nn.Module, data: list[Any]) -> lp.Task:
    train = any("Finetune" in step for step in spec.recipe)
    dynamic: Any = {} if spec.dynamic == "fixed" else None
    return lp.Task(net, calibrate=data, dynamic=dynamic, train=data if train else None, loss=_loss if train else None)


def _loss(model: Any, batch: Any) -> Tensor:
    floats = [y for y in tree_leaves(called(model, batch)) if isinstance(y, Tensor) and y.is_floating_point()]
    return sum((y.float().square().mean() for y in floats), torch.zeros(()))


def _recipe(spec: Spec) -> lp.Recipe | None:
    return lp.Recipe([_eval(step) for step in spec.recipe]) if spec.recipe else None


def _eval(text: str) -> Any:
    return eval(text, {"lp": lp})


@contextmanager
def _within(spec: Spec, made: Mapping[str, Any]) -> Iterator[None]:
    with eval(spec.ambient, dict(made)) if spec.ambient else nullcontext():
        yield
