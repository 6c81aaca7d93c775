"""Every distillation term: against a slow, obvious version, and what it must leave alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from compared import close
from torch import Tensor, nn
from torch.nn import functional as F

from lilliput.errors import InputError, RecipeError
from lilliput.plain import from_plain, to_plain
from lilliput.techniques.distill import (
    DIST,
    DKD,
    TERMS,
    AttentionTransfer,
    FitNet,
    LayerTerm,
    LogitKD,
    RelationalKD,
    Seen,
    Term,
    attention_of,
    check_taps,
    comparisons,
)

CASES: tuple[Term, ...] = (
    LogitKD(),
    LogitKD(2.0, weight=0.5, teacher=1),
    LogitKD(by="mse"),
    DKD(),
    DKD(0.5, 2.0, temperature=1.0),
    DIST(),
    DIST(2.0, 0.5, temperature=3.0),
    FitNet("body"),
    FitNet(("body", "tokens"), teacher_layers=("wide", "more"), weight=0.1),
    RelationalKD("body"),
    RelationalKD(("body", ""), by="angles", teacher_layers=("wide", "")),
    RelationalKD("body", by="similarities", teacher_layers="wide"),
    RelationalKD(("body", "end"), by="flow", teacher_layers=("large", "end")),
    AttentionTransfer("body", teacher_layers="wide"),
    AttentionTransfer("tokens", teacher_layers="more"),
    AttentionTransfer("body", by="kl"),
    AttentionTransfer("body", by="mse"),
)
assert {type(term) for term in CASES} == set(TERMS.values()), "a term that no contract is checked on"


def shown(dtype: torch.dtype = torch.float32, grad: bool = False, batch: int = 6) -> Seen:
    """Layers of many shapes; `wide` is `body` with other channels and size, `more` is `tokens` with another width."""
    sizes = {
        "body": (4, 6, 6), "large": (4, 8, 8), "end": (5, 3, 3), "wide": (7, 3, 4), "tokens": (5, 8), "more": (5, 12)
    }  # fmt: skip
    made = {name: torch.randn(batch, *size).to(dtype).requires_grad_(grad) for name, size in sizes.items()}
    looks = torch.randn(batch, 2, 5, 5).softmax(-1).to(dtype).requires_grad_(grad)
    return Seen((2 * torch.randn(batch, 10)).to(dtype).requires_grad_(grad), made, {"body": looks})


def leaves(seen: Seen) -> list[Tensor]:
    return [seen.output, *seen.taps.values(), *seen.attention.values()]


def each(*terms: Term) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return pytest.mark.parametrize("term", terms or CASES, ids=repr)


# slow, obvious versions, in Python's own numbers


def softmax(z: list[float], temperature: float) -> list[float]:
    powers = [math.exp((x - max(z)) / temperature) for x in z]
    return [p / sum(powers) for p in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def less(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def correlation(a: list[float], b: list[float]) -> float:
    a, b = [x - mean(a) for x in a], [x - mean(b) for x in b]
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def is_number(found: Tensor, wanted: float) -> None:
    assert found.dtype == torch.float32 and found.shape == ()
    assert found.item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_response(temperature: float) -> None:
    s, t = shown(), shown()
    wanted = [
        temperature**2 * kl(softmax(b, temperature), softmax(a, temperature))
        for a, b in zip(s.output.tolist(), t.output.tolist(), strict=True)
    ]
    is_number(LogitKD(temperature).loss(s, t), mean(wanted))
    squares = [(a - b) ** 2 for a, b in zip(s.output.flatten().tolist(), t.output.flatten().tolist(), strict=True)]
    is_number(LogitKD(temperature, by="mse").loss(s, t), mean(squares))


@pytest.mark.parametrize("labels", [None, [3, 0, 9, 9, 1, 5], [3, -100, 9, -100, 1, 5]])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled(labels: list[int] | None, temperature: float) -> None:
    s, t = shown(), shown()
    wanted = []
    for row, (a, b) in enumerate(zip(s.output.tolist(), t.output.tolist(), strict=True)):
        target = b.index(max(b)) if labels is None or labels[row] < 0 else labels[row]
        p, q = softmax(b, temperature), softmax(a, temperature)
        right = kl([p[target], 1 - p[target]], [q[target], 1 - q[target]])
        others = [i for i in range(10) if i != target]
        rest = kl([p[i] / (1 - p[target]) for i in others], [q[i] / (1 - q[target]) for i in others])
        wanted.append(temperature**2 * (0.7 * right + 3 * rest))
    given = None if labels is None else torch.tensor(labels)
    is_number(DKD(0.7, 3.0, temperature).loss(s, t, labels=given), mean(wanted))


def test_decoupled_is_response_where_the_rest_weighs_what_the_teacher_leaves_it() -> None:
    """KL = KL(b) + (1 - share of the target) · KL(rest): equation 7 of the paper."""
    s, t = shown(batch=1), shown(batch=1)
    left = 1 - (t.output / 4).softmax(1).max().item()
    is_number(DKD(1.0, left).loss(s, t), LogitKD().loss(s, t).item())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_correlation(temperature: float) -> None:
    s, t = shown(), shown()
    p, q = ([softmax(row, temperature) for row in seen.output.tolist()] for seen in (t, s))
    inter = mean([1 - correlation(a, b) for a, b in zip(p, q, strict=True)])
    columns = zip(zip(*p, strict=True), zip(*q, strict=True), strict=True)
    intra = mean([1 - correlation(list(a), list(b)) for a, b in columns])
    is_number(DIST(2.0, 0.5, temperature).loss(s, t), temperature**2 * (2 * inter + 0.5 * intra))


def test_hint() -> None:
    s, t = shown(), shown()
    hint = FitNet("body", teacher_layers="wide")
    projection = hint.projection(s, t)
    assert isinstance(projection, nn.ModuleList)
    weight, bias = projection[0].weight.tolist(), projection[0].bias.tolist()
    x, y = s.taps["body"], t.taps["wide"]  # [6, 4, 6, 6] and [6, 7, 3, 4]
    squares = []
    for n, c, i, j in itertools.product(range(6), range(7), range(3), range(4)):
        columns = range(j * 6 // 4, -(-(j + 1) * 6 // 4))  # 4 overlapping windows over 6
        window = [x[n, :, row, column].tolist() for row in (2 * i, 2 * i + 1) for column in columns]
        pooled = [mean(list(channel)) for channel in zip(*window, strict=True)]
        squares.append((dot(weight[c], pooled) + bias[c] - y[n, c, i, j].item()) ** 2)
    is_number(hint.loss(s, t, projection), mean(squares))


def test_distances() -> None:
    s, t = shown(), shown()
    x, y = s.taps["body"].flatten(1).tolist(), t.taps["wide"].flatten(1).tolist()
    pairs = list(itertools.permutations(range(6), 2))
    far = [[math.dist(points[i], points[j]) for i, j in pairs] for points in (x, y)]
    wanted = mean([huber(a / mean(far[0]) - b / mean(far[1])) for a, b in zip(*far, strict=True)])
    is_number(RelationalKD("body", teacher_layers="wide").loss(s, t), wanted)


def test_angles() -> None:
    s, t = shown(), shown()
    x, y = s.taps["body"].flatten(1).tolist(), t.taps["wide"].flatten(1).tolist()

    def cosine(points: list[list[float]], i: int, j: int, k: int) -> float:
        a, b = less(points[i], points[j]), less(points[k], points[j])
        return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))

    wanted = [huber(cosine(x, *ijk) - cosine(y, *ijk)) for ijk in itertools.permutations(range(6), 3)]
    is_number(RelationalKD("body", by="angles", teacher_layers="wide").loss(s, t), mean(wanted))


def test_similarities() -> None:
    s, t = shown(), shown()

    def rows(x: Tensor) -> list[list[float]]:
        points = x.flatten(1).tolist()
        gram = [[dot(a, b) for b in points] for a in points]
        return [[value / math.sqrt(dot(row, row)) for value in row] for row in gram]

    ours, theirs = rows(s.taps["body"]), rows(t.taps["wide"])
    wanted = sum((ours[i][j] - theirs[i][j]) ** 2 for i in range(6) for j in range(6)) / 6**2
    is_number(RelationalKD("body", by="similarities", teacher_layers="wide").loss(s, t), wanted)


def test_flow() -> None:
    s, t = shown(), shown()

    def matrix(a: Tensor, b: Tensor, n: int) -> list[float]:
        a = F.avg_pool2d(a, 2)  # [6, 4, 3, 3] as b, [6, 5, 3, 3]
        return [
            sum(a[n, i, h, w].item() * b[n, j, h, w].item() for h in range(3) for w in range(3)) / 9
            for i in range(4)
            for j in range(5)
        ]

    ours, theirs = ([matrix(x.taps["body"], x.taps["end"], n) for n in range(6)] for x in (s, t))
    wanted = mean([(a - b) ** 2 for p, q in zip(ours, theirs, strict=True) for a, b in zip(p, q, strict=True)])
    is_number(RelationalKD(("body", "end"), by="flow").loss(s, t), wanted)


@pytest.mark.parametrize(("layer", "teacher_layer"), [("body", "wide"), ("tokens", "more")])
def test_attention_of_energy(layer: str, teacher_layer: str) -> None:
    s, t = shown(), shown()
    x, y = s.taps[layer], t.taps[teacher_layer]

    def look(x: Tensor, n: int) -> list[float]:
        """Pixel by pixel of pictures, token by token of sentences; [4, 6, 6] averaged to [3, 4] at last."""
        squares = x[n].square().sum(0 if x.dim() == 4 else 1)
        if x.dim() == 4 and x.shape[2:] == (6, 6):
            windows = [(2 * i, j * 6 // 4, -(-(j + 1) * 6 // 4)) for i in range(3) for j in range(4)]
            squares = torch.stack([squares[i : i + 2, a:b].mean() for i, a, b in windows])
        values: list[float] = squares.flatten().tolist()
        return [value / math.sqrt(dot(values, values)) for value in values]

    differences = [less(look(x, n), look(y, n)) for n in range(6)]
    is_number(AttentionTransfer(layer, teacher_layers=teacher_layer).loss(s, t), mean([dot(d, d) for d in differences]))


def test_attention_of_probabilities() -> None:
    s, t = shown(), shown()
    ours, theirs = (x.attention["body"].flatten(0, 2).tolist() for x in (s, t))  # [batch · heads · queries, keys]
    is_number(
        AttentionTransfer("body", by="kl").loss(s, t), mean([kl(q, p) for p, q in zip(ours, theirs, strict=True)])
    )
    squares = [(a - b) ** 2 for p, q in zip(ours, theirs, strict=True) for a, b in zip(p, q, strict=True)]
    is_number(AttentionTransfer("body", by="mse").loss(s, t), mean(squares))
    averaged = Seen(t.output, {}, {"body": t.attention["body"].mean(1)})
    few = Seen(s.output, {}, {"body": s.attention["body"].mean(1, keepdim=True)})
    for by in ("kl", "mse"):
        fewer = AttentionTransfer("body", by=by)
        is_number(fewer.loss(s, averaged), fewer.loss(few, averaged).item())


# what holds of every term


@each()
def test_terms_survive_as_plain_data(term: Term) -> None:
    assert from_plain(to_plain(term), TERMS) == term
    assert eval(repr(term), dict(TERMS)) == term


@each()
def test_gradients_reach_the_student_and_not_the_teacher(term: Term) -> None:
    s, t = shown(grad=True), shown(grad=True)
    projection = term.projection(s, t)
    term.loss(s, t, projection, torch.arange(6)).backward()
    assert all(x.grad is None for x in leaves(t))
    reached = [x.grad for x in leaves(s) if x.grad is not None]
    assert reached and all(bool(grad.isfinite().all()) and bool(grad.any()) for grad in reached)
    assert len(reached) == (len(term.paths[0]) if isinstance(term, LayerTerm) else 1)
    if projection is not None:
        assert all(p.grad is not None and bool(p.grad.any()) for p in projection.parameters())


@each(*(replace(term, teacher_layers=()) if isinstance(term, LayerTerm) else term for term in CASES))
def test_a_student_like_its_teacher_is_at_the_minimum(term: Term) -> None:
    s = shown(grad=True)
    assert term.projection(s, s) is None
    loss = term.loss(s, s, None, torch.arange(6))
    loss.backward()
    assert abs(loss.item()) < 1e-5
    for grad in [x.grad for x in leaves(s) if x.grad is not None]:
        if (
            isinstance(term, AttentionTransfer) and term.by == "kl"
        ):  # shares add up to 1: what lifts them all moves none
            grad -= grad.mean(-1, keepdim=True)
        assert grad.abs().max() < 1e-3


@each()
def test_losses_are_in_float32_whatever_the_models_compute_in(term: Term) -> None:
    wide, narrow = shown(), shown()
    projection = term.projection(wide, narrow)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = [
            Seen(
                seen.output.to(dtype),
                {path: x.to(dtype) for path, x in seen.taps.items()},
                {path: x.to(dtype) for path, x in seen.attention.items()},
            )
            for seen in (wide, narrow)
        ]
        exact = [
            Seen(
                seen.output.float(),
                {path: x.float() for path, x in seen.taps.items()},
                {path: x.float() for path, x in seen.attention.items()},
            )
            for seen in rounded
        ]
        with torch.autocast("cpu", torch.bfloat16):
            found = term.loss(rounded[0], rounded[1], projection)
        assert found.dtype == torch.float32
        assert found.item() == term.loss(exact[0], exact[1], projection).item()


@each()
def test_scores_beyond_the_range_of_half_precision_and_samples_that_are_the_same_give_no_nan(term: Term) -> None:
    for change in (lambda x: 300 * x, lambda x: 0 * x, lambda x: x[:1].expand_as(x)):
        s, t = shown(grad=True), shown()
        harsh = Seen(change(s.output), {path: change(x) for path, x in s.taps.items()}, s.attention)
        loss = term.loss(harsh, t, term.projection(s, t))
        loss.backward()
        assert bool(loss.isfinite())
        assert all(x.grad is None or bool(x.grad.isfinite().all()) for x in leaves(s))


@each()
def test_a_batch_of_one_is_taken(term: Term) -> None:
    s, t = shown(grad=True, batch=1), shown(batch=1)
    loss = term.loss(s, t, term.projection(s, t))
    loss.backward()
    assert bool(loss.isfinite())
    assert all(x.grad is None or bool(x.grad.isfinite().all()) for x in leaves(s))


@each(*(term for term in CASES if isinstance(term, LogitKD | DKD | DIST)))
def test_tokens_and_pixels_are_rows(term: Term) -> None:
    s, t, labels = torch.randn(2, 3, 4, 10), torch.randn(2, 3, 4, 10), torch.randint(10, (2, 3, 4))
    rows = term.loss(Seen(s.flatten(0, 2)), Seen(t.flatten(0, 2)), labels=labels.flatten())
    is_number(term.loss(Seen(s), Seen(t), labels=labels), rows.item())
    pictures = replace(term, axis=1)  # type: ignore[call-arg]
    is_number(pictures.loss(Seen(s.movedim(-1, 1)), Seen(t.movedim(-1, 1)), labels=labels), rows.item())


@each(*(term for term in CASES if isinstance(term, LayerTerm) and getattr(term, "by", "") != "flow"))
def test_several_layers_add_up(term: Term) -> None:
    s, t = shown(), shown()
    both = replace(term, layers="body", teacher_layers=("body",))  # type: ignore[call-arg]
    twice = replace(term, layers=("body", "body"), teacher_layers=())  # type: ignore[call-arg]
    is_number(twice.loss(s, t), 2 * both.loss(s, t).item())


# invariances


def test_correlation_is_blind_to_scale_and_shift() -> None:
    a, b = torch.rand(5, 30), torch.rand(5, 30)
    scale, shift = torch.rand(5, 1) + 0.5, torch.randn(5, 1)
    close(comparisons.pearson(a * scale + shift, b), comparisons.pearson(a, b), atol=1e-5)
    close(comparisons.pearson(a * 1e-25, b), comparisons.pearson(a, b), atol=1e-5)
    logits = torch.randn(5, 10)
    is_number(DIST().loss(Seen(logits + shift), Seen(logits)), 0.0)


def test_correlation_makes_no_direction_of_rounding() -> None:
    """A head that starts at zero answers everything alike."""
    logits = torch.zeros(64, 1000, requires_grad=True)
    DIST().loss(Seen(logits), Seen(torch.randn(64, 1000))).backward()
    assert logits.grad is not None and 0 < logits.grad.norm() < 1e3


@pytest.mark.parametrize("by", ["distances", "angles"])
def test_relations_are_blind_to_scale_shift_and_rotation(by: str) -> None:
    x = torch.randn(6, 12)
    turned = 3 * (x @ torch.linalg.qr(torch.randn(12, 12))[0]) + torch.randn(12)
    assert RelationalKD("", by=by).loss(Seen(x), Seen(turned)).item() < 1e-8  # type: ignore[arg-type]
    assert RelationalKD("", by=by).loss(Seen(x), Seen(x[torch.randperm(6)])).item() > 1e-4  # type: ignore[arg-type]


def test_similarities_are_blind_to_scale_and_rotation() -> None:
    x = torch.randn(6, 12)
    turned = 3 * (x @ torch.linalg.qr(torch.randn(12, 12))[0])
    assert RelationalKD("", by="similarities").loss(Seen(x), Seen(turned)).item() < 1e-8


def test_distances_survive_samples_far_from_zero() -> None:
    x = torch.randn(6, 12, dtype=torch.float64)
    near, far = comparisons.distances(x), comparisons.distances(x + 1e4)
    close(near, far, rtol=1e-6)


def test_energy_is_blind_to_scale() -> None:
    s = shown()
    louder = Seen(s.output, {path: 5 * x for path, x in s.taps.items()})
    assert AttentionTransfer("body").loss(s, louder).item() < 1e-8


def test_several_teachers_are_followed_to_their_mean() -> None:
    """Terms of weight 1/n have the gradient of one term towards the mean of what the teachers answer."""
    s, teachers = torch.randn(6, 10, requires_grad=True), [torch.randn(6, 10) for _ in range(3)]
    terms = [LogitKD(weight=1 / 3, teacher=i) for i in range(3)]
    sum(term.weight * term.loss(Seen(s), Seen(teachers[term.teacher])) for term in terms).backward()  # type: ignore[union-attr]
    several = s.grad
    mixed = torch.stack([(t / 4).softmax(1) for t in teachers]).mean(0)
    s.grad = None
    LogitKD().loss(Seen(s), Seen(4 * mixed.log())).backward()
    assert several is not None
    close(several, s.grad)


# projections, attention, errors


def test_projections_are_made_where_widths_differ_and_learn() -> None:
    hint = FitNet(("body", "tokens", "body"), teacher_layers=("wide", "more", "large"))
    s, t = shown(), shown()
    projection = hint.projection(s, t)
    assert isinstance(projection, nn.ModuleList)
    shapes = [tuple(part.weight.shape) if isinstance(part, nn.Linear) else None for part in projection]
    assert shapes == [(7, 4), (12, 8), None]
    optimizer = torch.optim.SGD(projection.parameters(), 0.5)
    losses = []
    for _ in range(5):
        loss = hint.loss(s, t, projection)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert FitNet("body").projection(s, t) is None


@pytest.mark.parametrize(
    ("size", "teacher_size", "axis"),
    [
        pytest.param((3,), (5,), None, id="vectors"),
        pytest.param((7, 3), (7, 5), None, id="tokens"),
        pytest.param((3, 7), (5, 4), 1, id="signals"),
        pytest.param((2, 6, 3), (2, 2, 5), -1, id="channels last"),
        pytest.param((3, 4, 4, 4), (5, 2, 2, 2), None, id="volumes"),
    ],
)
def test_hints_take_every_layout(size: tuple[int, ...], teacher_size: tuple[int, ...], axis: int | None) -> None:
    s = Seen(torch.zeros(2, 3), {"a": torch.randn(2, *size)})
    t = Seen(torch.zeros(2, 3), {"a": torch.randn(2, *teacher_size)})
    hint = FitNet("a", channel_axis=axis)
    projection = hint.projection(s, t)
    assert isinstance(projection, nn.ModuleList) and projection[0].weight.shape == (5, 3)
    assert bool(hint.loss(s, t, projection).isfinite())


def test_attention_is_found_in_what_modules_return() -> None:
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
    outputs = [layer(x, x, x), layer(x, x, x, average_attn_weights=False)]
    assert [attention_of(output).shape for output in outputs] == [(3, 5, 5), (3, 2, 5, 5)]  # type: ignore[union-attr]
    s, t = (Seen(x, {}, {"layer": attention_of(output)}) for output in outputs)  # type: ignore[dict-item]
    assert AttentionTransfer("layer", by="kl").loss(s, t).item() == pytest.approx(0, abs=1e-6)
    lstm = nn.LSTM(8, 8, batch_first=True)
    assert attention_of(x) is None
    assert attention_of(layer(x, x, x, need_weights=False)) is None
    assert attention_of(lstm(x)) is None


def test_masked_keys_and_classes_add_nothing() -> None:
    mask = torch.tensor([0.0, 0.0, -torch.inf])
    s, t = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    loss = LogitKD().loss(Seen(s + mask), Seen(t + mask))
    loss.backward()
    is_number(loss, LogitKD().loss(Seen(s[:, :2]), Seen(t[:, :2])).item())
    assert s.grad is not None and bool(s.grad.isfinite().all())
    ours, theirs = ((x + mask).softmax(1)[:, None] for x in (s, t))
    is_number(
        AttentionTransfer("a", by="kl").loss(Seen(s, {}, {"a": ours}), Seen(t, {}, {"a": theirs})),
        comparisons.divergence(s[:, :2].log_softmax(1), t[:, :2].log_softmax(1)).mean().item(),
    )


X = torch.zeros
WRONG: list[tuple[Term, Seen, Seen, str]] = [
    (LogitKD(), Seen(X(8, 10)), Seen(X(8, 100)), r"\(8, 10\).*\(8, 100\); take a teacher of the same classes.*FitNet"),
    (LogitKD(), Seen(X(8, 10)), Seen(X(4, 10)), r"\(8, 10\).*\(4, 10\); show both the same batch"),
    (DIST(), Seen(X(8, 1)), Seen(X(8, 1)), r'\(8, 1\) has one class.*LogitKD\(by="mse"\)'),
    (LogitKD(), Seen(X(8)), Seen(X(8)), r'\(8,\) has one class.*LogitKD\(by="mse"\)'),
    (LogitKD(axis=2), Seen(X(8, 3)), Seen(X(8, 3)), r"\(8, 3\) has no classes on axis 2; give axis"),
    (FitNet("a"), Seen(X(8, 3)), Seen(X(8, 3)), "FitNet, student: 'a' showed nothing"),
    (FitNet("a"), Seen(X(8, 3), {"a": X(8, 3)}), Seen(X(8, 3), {"b": X(8, 3)}), "FitNet, teacher: 'a' showed nothing"),
    (FitNet(""), Seen(X(8, 3)), Seen(X(4, 3)), r"FitNet, 'output'.*\(8, 3\).*\(4, 3\); tap modules that see one row"),
    (FitNet(""), Seen(X(8, 3)), Seen(X(8, 5)), r"\(8, 3\).*\(8, 5\); give the projection"),
    (FitNet(""), Seen(X(8)), Seen(X(8)), r"\(8,\) has no channels on axis -1; give channel_axis"),
    (FitNet(""), Seen(X(8, 3, 4)), Seen(X(8, 5, 4)), r"\(8, 4, 3\).*\(8, 4, 5\); give both the same tokens"),
    (FitNet(""), Seen(X(8, 3, 2, 2)), Seen(X(8, 4, 3)), r"\(8, 3, 2, 2\).*tap layers of like outputs"),
    (AttentionTransfer(""), Seen(X(8, 3)), Seen(X(8, 3)), r"\(8, 3\).*nowhere to look"),
    (AttentionTransfer("a", by="kl"), Seen(X(8, 3)), Seen(X(8, 3)), "no attention probabilities .*attn_implementation"),
    (
        AttentionTransfer("a", by="mse"),
        Seen(X(8, 3), {}, {"a": X(8, 2, 5, 5)}),
        Seen(X(8, 3), {}, {"a": X(8, 2, 4, 4)}),
        r"\(8, 2, 5, 5\).*\(8, 2, 4, 4\); give both models the same tokens",
    ),
    (
        RelationalKD(("a", "b"), by="flow"), Seen(X(8, 3), {"a": X(8, 3), "b": X(8, 4)}),
        Seen(X(8, 3), {"a": X(8, 5), "b": X(8, 4)}), r"\(8, 3, 4\).*\(8, 5, 4\).*similarities",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("term", "student", "teacher", "hint"), WRONG, ids=[f"{w[0]}{i}" for i, w in enumerate(WRONG)])
def test_what_does_not_fit_is_refused_with_both_shapes_and_a_remedy(
    term: Term, student: Seen, teacher: Seen, hint: str
) -> None:
    with pytest.raises(InputError, match=hint):
        term.loss(student, teacher)


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        (X(8, 2, dtype=torch.int64), r"\(8, 2\).*\(8, 10\); give integers of shape \(8,\)"),
        (X(8), r"torch.float32 labels.*give integers"),
        (torch.tensor([0, 1, 2, 3, 4, 5, 6, 10]), "label 10 is no class.*number the classes from 0"),
        (torch.tensor([0, 1, 2, 3, 4, 5, 6, -1]), "label -1 is no class.*-100"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Tensor, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        DKD().loss(Seen(X(8, 10)), Seen(X(8, 10)), labels=labels)


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: LogitKD(by="lk"), r"LogitKD\.by: is 'lk'; did you mean 'kl'"),
        (lambda: RelationalKD("a", by="angle"), "did you mean 'angles'"),
        (lambda: LogitKD(0.0), r"LogitKD\.temperature: is 0\.0; give a finite number above 0"),
        (lambda: LogitKD("4"), r"LogitKD\.temperature: is '4'"),
        (lambda: LogitKD(weight=-1), r"LogitKD\.weight"),
        (lambda: DKD(beta=math.nan), r"DKD\.beta"),
        (lambda: LogitKD(teacher=-1), "counted from 0"),
        (lambda: FitNet(()), r"FitNet\.layers: names no layer"),
        (
            lambda: FitNet(("a", "b"), teacher_layers="c"),
            r"FitNet\.teacher_layers: names 1 layers where the student has 2",
        ),
        (lambda: RelationalKD("a", by="flow"), "flow is between two layers; name both"),
        (lambda: from_plain({"kind": "LogitKD", "temprature": 2}, TERMS), "did you mean 'temperature'"),
        (lambda: from_plain({"kind": "FitNets", "layers": "a"}, TERMS), "did you mean 'FitNet'"),
    ],
)
def test_knobs_that_mean_nothing_are_refused(make: Callable[[], Term], hint: str) -> None:
    with pytest.raises(RecipeError, match=hint):
        make()


def test_taps_that_the_model_has_not_are_refused_with_the_nearest() -> None:
    model = nn.Sequential()
    for i in range(20):
        model.add_module(f"layer{i}", nn.Linear(2, 2))
    check_taps(model, ["layer3", "", "layer19"], "FitNet")
    with pytest.raises(
        RecipeError, match=r"FitNet, student: there is no module 'layr7'; did you mean 'layer7'"
    ) as caught:
        check_taps(model, ["layr7"], "FitNet, student")
    assert str(caught.value).count("layer") < 12


def test_taps_are_named_once_for_each_side() -> None:
    term = RelationalKD(("a", ""), teacher_layers=("b", ""))
    assert (term.student_taps, term.teacher_taps) == (("a",), ("b",))
    assert (FitNet("a").student_taps, FitNet("a").teacher_taps) == (("a",), ("a",))
    assert LogitKD().student_taps == LogitKD().teacher_taps == ()
