"""A class of the user's is as good as ours: in recipes, files, reports and folders of runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from zipfile import ZipFile, is_zipfile

import onnx
import pytest
import torch
from compared import close
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import lilliput as lp
from lilliput.encodings import Encoding
from lilliput.encodings.encoding import Part
from lilliput.errors import FormatError, InputError, RecipeError, ResumeError
from lilliput.measure import Latencies
from lilliput.model.carrier.parameters import encoding_of, read
from lilliput.model.views.inputs import Dynamic, Inputs
from lilliput.model.views.signature import Signature
from lilliput.registry import additions, forget
from lilliput.targets import OnnxRuntime, Preferences, Runtime, Target, Writer
from lilliput.targets.onnxruntime import OrtPreferences
from lilliput.targets.target import Runner
from lilliput.techniques.encode import set_tensor
from lilliput.techniques.ranges import Ends
from lilliput.techniques.run import Run
from lilliput.techniques.scores import Score
from lilliput.techniques.technique import Technique

X = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
QUICK = OnnxRuntime(seconds=0)


@dataclass(frozen=True, repr=False)
class Ternary(Encoding):
    """-1, 0 and 1 times one scale a row; what is under half of the mean magnitude is 0. Decoded by plain torch."""

    cut: float = 0.5

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        return {"scale": x.abs().flatten(1).mean(1).clamp(min=1e-12)}

    def encode(self, x: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Part]:
        scale = parameters["scale"].reshape(-1, *[1] * (x.dim() - 1))
        return {"codes": (x.sign() * (x.abs() > self.cut * scale)).to(torch.int8), "scale": parameters["scale"]}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        codes = parts["codes"]
        return codes.float() * parts["scale"].reshape(-1, *[1] * (codes.dim() - 1))

    def size_bits(self, shape: tuple[int, ...]) -> int:
        return 2 * prod(shape) + 32 * shape[0]


@dataclass(frozen=True, repr=False)
class Halve(Technique):
    """Every bias is halved."""

    def apply(self, run: Run) -> None:
        for name in [name for name, _ in run.model.named_parameters() if name.endswith("bias")]:
            set_tensor(run, name, read(run.model, name) / 2)
            run.note(name, "halved")


@dataclass(frozen=True, repr=False)
class Widest(Ends):
    """The whole range, and a tenth more."""

    def find(self, points: Tensor, counts: Tensor | None, encoding: Encoding) -> tuple[Tensor, Tensor]:
        largest = 1.1 * points.abs().amax(1)
        return -largest, largest


@dataclass(frozen=True, repr=False)
class First(Score):
    """Rows count the less the later they come."""

    def of(self, run: Run, path: str, x: Tensor) -> Tensor:
        rows = torch.arange(len(x), 0, -1.0).reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape)
        return rows if path.startswith("0.") else torch.ones_like(x)


class Fours(OrtPreferences):
    multiple = 4


@dataclass(frozen=True)
class Patient(OnnxRuntime):
    """ONNX Runtime that wants multiples of 4."""

    name: ClassVar[str] = "patient"

    @property
    def prefers(self) -> Fours:
        return Fours(self.profile, self.safe)


class Evaluator(Runtime):
    """The evaluator of ONNX itself, node by node; its times are made up."""

    def open(self, built: Path | bytes, signature: Signature, module: nn.Module | None = None) -> Runner:
        held = ReferenceEvaluator(onnx.load(built) if isinstance(built, Path) else onnx.load_from_string(built))

        def run(*args: Any, **kwargs: Any) -> Any:
            given = [x.numpy() for x in signature.arguments(Inputs(args, kwargs))]
            found = held.run(None, dict(zip(held.input_names, given, strict=True)))
            return signature.assemble([torch.from_numpy(x) for x in found])

        return run

    def latencies(self, runs: Mapping[str, Runner], example: Inputs, seconds: float) -> Latencies:
        return Latencies({name: (4.0 if name == "before" else 2.0,) * 9 for name in runs}, threads=1, cores=2)


@dataclass(frozen=True)
class Evaluated(Target):
    """What ONNX Runtime prefers and how it is written for it, and a runtime of its own."""

    name: ClassVar[str] = "evaluated"

    @property
    def prefers(self) -> Preferences:
        return OnnxRuntime().prefers

    @property
    def writes(self) -> Writer:
        return replace(OnnxRuntime().writes, opened_by=self.name)

    @property
    def runs(self) -> Runtime:
        return Evaluator()


@dataclass(frozen=True)
class Archive(Writer):
    """A graph in a zip file, which nothing here runs; it is read again to be compared."""

    inner: ClassVar[Writer] = OnnxRuntime().writes

    format: ClassVar[str] = "zip"

    def build(self, path: Path, model: nn.Module, example: Inputs, dynamic: Dynamic) -> None:
        with TemporaryDirectory() as folder:
            self.inner.build(Path(folder) / "net.onnx", model, example, dynamic)
            with ZipFile(path, "w") as file:
                file.write(Path(folder) / "net.onnx", "net.onnx")

    def reference(self, built: Path, signature: Signature, *, rounded: bool) -> Runner | None:
        with TemporaryDirectory() as folder, ZipFile(built) as file:
            return self.inner.reference(Path(file.extract("net.onnx", folder)), signature, rounded=rounded)


@dataclass(frozen=True)
class Archived(Target):
    """One that only writes."""

    name: ClassVar[str] = "archived"

    @property
    def prefers(self) -> Preferences:
        return OnnxRuntime().prefers

    @property
    def writes(self) -> Writer:
        return Archive()

    @property
    def runs(self) -> None:
        return None


ADDITIONS = (Ternary, Halve, Widest, First, Patient, Evaluated, Archived)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for kind in ADDITIONS:
        assert lp.register(kind) is kind
    yield
    for kind in ADDITIONS:
        forget(kind)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def test_an_encoding_goes_into_files_and_graphs(tmp_path: Path) -> None:
    recipe = lp.Recipe([lp.Quantize(weights=Ternary(0.6), where="0")])
    small = lp.compress(net(), recipe, calibrate=[X], target=QUICK, folder=tmp_path)
    weight = read(small.model, "0.weight")
    assert all(len(row.abs().unique()) == 2 for row in weight)
    assert encoding_of(small.model, "0.weight") == Ternary(0.6)
    loaded = lp.load(tmp_path / "net.lil", into=net())
    assert torch.equal(loaded(X), small.model(X)) and encoding_of(loaded, "0.weight") == Ternary(0.6)
    close(lp.open(tmp_path / "net.lil")(X), small.model(X), rtol=1e-5, atol=1e-6)
    (row,) = [row for row in small.data["layers"] if row["path"] == "0.weight"]
    assert "ternary" in row["encoding"].lower()
    assert (tmp_path / "net.lil").stat().st_size < 24 * 32 + 4 * 4 * 32 + 12_000
    forget(Ternary)
    with pytest.raises(FormatError, match=r"Ternary.*lilliput\.register"):
        lp.load(tmp_path / "net.lil", into=net())
    close(lp.open(tmp_path / "net.lil")(X), small.model(X), rtol=1e-5, atol=1e-6)  # the graph needs none


def test_training_goes_through_it() -> None:
    small = lp.apply(
        net(), lp.Recipe([lp.Quantize(weights=Ternary(), where="0", bias_correction=False)]), calibrate=[X]
    )
    lp.formats.unfreeze(small)
    before = small[0].weight.detach().clone()
    small(X).square().sum().backward()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.05)
    optimizer.step()
    lp.formats.freeze(small)
    after = small[0].weight
    assert not torch.equal(before, after) and all(len(row.abs().unique()) == 2 for row in after)


def test_a_technique_a_fit_and_a_target(tmp_path: Path) -> None:
    recipe = lp.Recipe([Halve(), lp.Prune("channels", 0.2), lp.Quantize(weights=lp.Int(4), fit=Widest())])
    assert lp.Recipe.from_toml(recipe.to_toml()) == recipe
    small = lp.compress(net(), recipe, calibrate=[X], target="patient", folder=tmp_path)
    assert small.data["target"] == "patient"
    assert small.model[0].out_features == 24  # 25.6 are left, the multiples of 4 at most


def test_a_target_with_a_runtime_of_its_own(tmp_path: Path) -> None:
    small = lp.compress(net(), calibrate=[X], target="evaluated", folder=tmp_path)
    assert small.data["speed"].startswith("2.00× faster") and small.data["target"] == "evaluated"
    theirs = lp.compress(net(), calibrate=[X], target=QUICK)
    assert small.built.read_bytes() == theirs.built.read_bytes()
    close(lp.open(tmp_path / "net.lil")(X), lp.open(theirs.folder / "net.lil")(X), share=0.02)
    close(lp.open(tmp_path / "net.lil")(X), small.model(X), share=0.02)


def test_a_target_that_only_writes(tmp_path: Path) -> None:
    small = lp.compress(net(), calibrate=[X], target="archived", folder=tmp_path)
    assert small.built.name == "net.zip" and is_zipfile(small.built)
    assert small.data["speed"] == "not run here: no times" and small.data["ratio"]["faster"] is None
    theirs = lp.compress(net(), calibrate=[X], target=QUICK)
    db, same = (one.data["agreement"]["outputs"][0]["sqnr_db"] for one in (small, theirs))
    assert abs(db - same) < 1.5
    with pytest.raises(FormatError, match="made for archived, which is not run here"):
        lp.open(tmp_path / "net.lil")
    loaded = lp.load(tmp_path / "net.lil", into=net())
    assert torch.equal(loaded(X), small.model(X))


def test_what_a_target_names_is_part_of_what_it_does() -> None:
    def told(multiple: int) -> dict[str, object]:
        part = type("Fours", (OrtPreferences,), {"multiple": multiple, "__qualname__": "Fours", "__module__": __name__})
        body = {"prefers": property(lambda self: part(None, False)), "name": "another", "__module__": __name__}
        kind = lp.register(dataclass(frozen=True)(type("Another", (OnnxRuntime,), body)))
        found = additions(kind())
        forget(kind)
        return found

    assert told(4) == told(4) and told(4) != told(8)


def test_a_fit() -> None:
    """The outermost weight is 7 / 1.1 steps from zero, so the nearest code is 6."""
    wide = lp.Recipe([lp.Quantize(weights=lp.Int(4), fit=Widest(), bias_correction=False, where="0")])
    exact = net()[0].weight.abs().amax(1)
    found = read(lp.apply(net(), wide, calibrate=[X]), "0.weight").abs().amax(1)
    close(found, 6 * 1.1 / 7 * exact, rtol=1e-5)


def test_a_score() -> None:
    recipe = lp.Recipe([lp.Prune("channels", 0.5, score=First(), where="0")])
    assert lp.Recipe.from_toml(recipe.to_toml()) == recipe
    small = lp.apply(net(), recipe, calibrate=[X])
    close(small[0].weight, net()[0].weight[:16])
    with pytest.raises(RecipeError, match="leave score= out"):
        lp.Prune("layers", 0.5, score=First())
    (zeroed,) = lp.apply(net(), lp.Recipe([lp.Prune("weights", 0.5, score=First(), where="0")]), calibrate=[X])[:1]
    assert bool(zeroed.weight[:16].all()) and not zeroed.weight[16:].any()


def test_powers_of_magnitudes_rank_otherwise() -> None:
    """Of two rows one holds a single large weight: by squares it counts more, by magnitudes less."""
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0, 0, 0], [1.0, 1.0, 1.0, 1.0]]))
        model[1].weight.fill_(1.0)
    kept = {}
    for power in (1, 2):
        prune = lp.Prune("channels", 0.5, score=lp.scores.Magnitude(power), where="0", multiple=1)
        kept[power] = lp.apply(lp.Task(model, example=torch.ones(1, 4)), lp.Recipe([prune]))[0].weight
    assert torch.equal(kept[1], model[0].weight[1:]) and torch.equal(kept[2], model[0].weight[:1])
    with pytest.raises(RecipeError, match="positive"):
        lp.scores.Magnitude(0)


def test_chance_takes_others_and_the_same_again() -> None:
    def zeros(seed: int) -> Tensor:
        prune = lp.Prune("weights", 0.5, score=lp.scores.Random(seed), where="0")
        return lp.apply(net(), lp.Recipe([prune]), calibrate=[X])[0].weight == 0  # type: ignore[index,union-attr]

    small = lp.apply(net(), lp.Recipe([lp.Prune("weights", 0.5, where="0")]), calibrate=[X])[0].weight == 0  # type: ignore[index,union-attr]
    first, again, other = zeros(0), zeros(0), zeros(1)
    assert torch.equal(first, again) and int(first.sum()) == int(other.sum()) == int(small.sum())
    for one in (other, small):  # half of what one takes the other takes too
        assert 0.35 < float((first & one).sum() / first.sum()) < 0.65
    channels = lp.apply(net(), lp.Recipe([lp.Prune("channels", 0.5, score=lp.scores.Random())]), calibrate=[X])
    assert channels[0].weight.shape[0] < net()[0].weight.shape[0]  # type: ignore[index,union-attr]


def test_a_run_is_not_gone_on_with_by_other_code(tmp_path: Path) -> None:
    def run(kind: type[Encoding]) -> None:
        recipe = lp.Recipe([lp.Quantize(weights=lp.register(kind)())])
        lp.compress(net(), recipe, calibrate=[X], target=QUICK, folder=tmp_path)

    def coarser(self: Ternary, x: Tensor) -> dict[str, Tensor]:
        return {"scale": x.abs().flatten(1).amax(1)}

    run(Ternary)
    run(Ternary)  # goes on
    other = type("Ternary", (Ternary,), {"fit": coarser, "__qualname__": "Ternary", "__module__": __name__})
    with pytest.raises(ResumeError, match="registered"):
        run(dataclass(frozen=True, repr=False)(other))


def test_what_an_addition_does_is_all_that_it_computes_by() -> None:
    """Properties, constants and bases count; an equal class is the same again."""

    def told(**body: object) -> dict[str, object]:
        given = {"name": "another", "__module__": __name__, "__qualname__": "Another", **body}
        kind = lp.register(dataclass(frozen=True)(type("Another", (OnnxRuntime,), given)))
        found = additions()
        forget(kind)
        return found

    four, eight = (property(lambda self, n=n: n) for n in (4, 8))
    assert told(multiple=four) == told(multiple=four)
    assert told(multiple=four) != told(multiple=eight)
    assert told(multiple=four) != told(multiple=four, slack=1)
    assert told(multiple=four) != additions()


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="give a subclass of one of Technique, Encoding"):
        lp.register(int)
    with pytest.raises(InputError, match="frozen dataclass"):
        lp.register(type("Plain", (Technique,), {"apply": lambda self, run: None}))

    @dataclass(frozen=True, repr=False)
    class Int(Encoding):
        fit = Ternary.fit
        encode = Ternary.encode
        decode = Ternary.decode
        size_bits = Ternary.size_bits

    with pytest.raises(InputError, match=re.escape("there is a Int already")):
        lp.register(Int)
    taken = type(
        "Int", (Technique,), {"apply": Halve.apply, "__qualname__": "Int"}
    )  # of another kind: recipes name both
    with pytest.raises(InputError, match=re.escape("there is a Int already")):
        lp.register(dataclass(frozen=True, repr=False)(taken))
    assert lp.register(lp.Int) is lp.Int
    forget(lp.Int)
    assert lp.Recipe.from_toml(lp.Recipe([lp.Quantize(weights=lp.Int(4))]).to_toml()).steps[0].weights == lp.Int(4)
    assert lp.register(Ternary) is Ternary  # again, as a notebook does
    with pytest.raises(RecipeError, match="values that flow"):
        lp.Quantize(activations=Ternary())
    forget(Ternary)
    with pytest.raises(RecipeError, match="weights as"):
        lp.Quantize(weights=Ternary())
