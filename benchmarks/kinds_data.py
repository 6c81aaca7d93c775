"""What each kind of network learns from, and by what it is judged: on samples that it never saw.

Fashion-MNIST: 20,000 pictures to train with (10,000 for a generator), the 10,000 test pictures to set things up by, and
the last 10,000 of its training pictures to judge by, with which no setting was chosen; likewise of all data. The text
is the documentation that comes with Python, whole topics of it apart for each use. The graph joins each of
scikit-learn's digits with the eight that resemble it most; the class of every tenth is known.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import fashion
import kinds_models as models
import numpy as np
import recurrent
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lilliput as lp

Tensors = tuple[Tensor, ...]
NOISY = 0.3  # the deviation of the noise that the U-Net takes away, where pixels go from 0 to 1
DRAWS, DRAWN = 10, 2_500  # pictures of a generator are judged so many times, so many at a time


@dataclass(frozen=True)
class Lesson:
    """`score` gives one number a sample, of which the metric is the mean; `inputs` are what files are compared on."""

    train: Any
    validate: Any
    loss: Callable[[nn.Module, Any], Tensor]
    inputs: Tensors
    score: Callable[[nn.Module], Tensor]
    example: Tensors | None = None  # None: the first of `inputs`
    dynamic: Mapping[int, Mapping[int, str]] | None = None
    beside: nn.Module | None = None  # what learns with the network, and is kept for the next `fit`

    def fit(self, net: nn.Module, step: lp.Finetune) -> nn.Module:
        """A trained copy."""
        task = lp.Task(net, train=self.train, loss=self.loss, validate=self.validate)
        return lp.train(task, step).model.eval()


def shuffled(*tensors: Tensor, size: int = 128) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), size, shuffle=True, drop_last=True)


@functools.cache
def pictures() -> dict[str, tuple[Tensor, Tensor]]:
    (x, y), validate = fashion.read("train"), fashion.read("t10k")
    return {"train": (x[:20_000], y[:20_000]), "validate": validate, "test": (x[-10_000:], y[-10_000:])}


def pixels(part: str) -> Tensor:
    """From 0 to 1."""
    return pictures()[part][0] * fashion.DEVIATION + fashion.MEAN


@torch.no_grad()
def answers(net: Callable[..., Any], *inputs: Tensor) -> Any:
    """What a network answers to many inputs, a part of them at a time."""
    told = [net(*parts) for parts in zip(*(x.split(500) for x in inputs), strict=True)]
    return torch.cat(told) if isinstance(told[0], Tensor) else tuple(map(torch.cat, zip(*told, strict=True)))


def classes(train: Tensors, validate: Tensors, test: Tensors, size: int = 128) -> Lesson:
    """The last tensor of each part holds the classes; scored by 1 where it is right."""

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(*batch[:-1]), batch[-1])

    def score(net: nn.Module) -> Tensor:
        return (answers(net, *test[:-1]).argmax(1) == test[-1]).double()

    return Lesson(
        shuffled(*train, size=size),
        list(zip(*(x.split(500) for x in validate), strict=True)),
        loss,
        tuple(x[:64] for x in test[:-1]),
        score,
    )


def clothes() -> Lesson:
    parts = pictures()
    return classes(parts["train"], parts["validate"], parts["test"])


def messages() -> Lesson:
    """Words; every eighth message of the part to train with is kept to judge by."""
    (words, spam), validate = recurrent.numbered(recurrent.data.sms())
    chosen = torch.arange(len(words)) % 8 == 0
    return classes((words[~chosen], spam[~chosen]), validate, (words[chosen], spam[chosen]), size=64)


def reviews() -> Lesson:
    """Words as an encoder takes them: a token for the class before the words, padding and what it hides behind them."""

    def taken(words: Tensor) -> Tensors:
        padding = (words == 0).sum(1, keepdim=True)
        words = words.gather(1, (torch.arange(words.shape[1]) + padding) % words.shape[1])
        words = torch.cat([torch.full((len(words), 1), models.CLS), words], 1)
        return words, (words != 0).long()

    (words, praise), validate = recurrent.numbered(recurrent.data.reviews())
    chosen = torch.arange(len(words)) % 8 == 0
    parts = ((words[~chosen], praise[~chosen]), validate, (words[chosen], praise[chosen]))
    return classes(*((*taken(x), y) for x, y in parts), size=64)


def noisy() -> Lesson:
    """The picture under the noise; scored by the peak signal-to-noise ratio in dB."""
    random = torch.Generator().manual_seed(0)

    def spoiled(clean: Tensor) -> Tensor:
        return clean + NOISY * torch.randn(clean.shape, generator=random)

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(net(batch[0]), batch[1])

    def score(net: nn.Module) -> Tensor:
        error = (answers(net, test).clamp(0, 1) - pixels("test")).square().mean((1, 2, 3))
        return -10 * torch.log10(error).double()

    train, validate, test = (spoiled(pixels(part)) for part in ("train", "validate", "test"))
    choice = list(zip(validate.split(500), pixels("validate").split(500), strict=True))
    return Lesson(shuffled(train, pixels("train")), choice, loss, (test[:64],), score)


def drawn() -> Lesson:
    """Pictures through a few numbers; scored by the bound on -log p, in nats a picture (Kingma and Welling, 2014)."""
    test = pixels("test")
    noise = torch.randn(len(test), models.LATENT, generator=torch.Generator().manual_seed(0))

    def bound(told: Tensors, x: Tensor) -> Tensor:
        logits, mean, spread = told
        pixel = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
        return pixel + 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(1)

    def loss(net: nn.Module, batch: Any) -> Tensor:
        x = batch[0]
        return bound(net(x, torch.randn(len(x), models.LATENT)), x).mean()

    return Lesson(
        shuffled(pixels("train")),
        [(x,) for x in pixels("validate").split(500)],
        loss,
        (test[:64], noise[:64]),
        lambda net: bound(answers(net, test, noise), test).double(),
    )


def prose() -> Lesson:
    """The next character; scored by bits a character of each part of a topic."""
    from pydoc_data.topics import topics

    texts: dict[str, list[str]] = {"train": [], "validate": [], "test": []}
    for name, text in sorted(topics.items()):
        place = hashlib.sha256(name.encode()).digest()[0]
        texts["validate" if place < 32 else "test" if place < 64 else "train"].append(text)
    common = collections.Counter("".join(texts["train"])).most_common(models.CHARACTERS - 1)
    known = {character: i + 1 for i, (character, _) in enumerate(common)}  # 0 is unknown

    def rows(part: str) -> Tensor:
        numbers = [torch.tensor([known.get(character, 0) for character in text]) for text in texts[part]]
        length = models.STEPS + 1
        return torch.cat([x[: len(x) // length * length].view(-1, length) for x in numbers])

    def bits(net: nn.Module, row: Tensor) -> Tensor:
        logits = net(row[:, :-1])
        return F.cross_entropy(logits.transpose(1, 2), row[:, 1:], reduction="none").mean(1) / math.log(2)

    test = rows("test")
    return Lesson(
        shuffled(rows("train"), size=32),
        [(x,) for x in rows("validate").split(100)],
        lambda net, batch: bits(net, batch[0]).mean(),
        (test[:64, :-1],),
        lambda net: answers(lambda x: bits(net, x), test).double(),
    )


def likeness() -> Lesson:
    """The classes of a graph's nodes, nine tenths of them unknown."""
    from sklearn.datasets import load_digits
    from sklearn.neighbors import kneighbors_graph

    x, y = load_digits(return_X_y=True)
    near = kneighbors_graph(x, 8).tocoo()
    nodes, labels = torch.from_numpy(x).float() / 16, torch.from_numpy(y).long()
    edges = torch.from_numpy(np.stack([near.col, near.row])).long()  # from the one that resembles
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test, chosen = order[:180], order[180:360], order[360:]

    def loss(net: nn.Module, batch: Any) -> Tensor:
        nodes, edges, rows, labels = batch
        return F.cross_entropy(net(nodes, edges)[rows], labels)

    @torch.no_grad()
    def score(net: nn.Module) -> Tensor:
        return (net(nodes, edges)[test].argmax(1) == labels[test]).double()

    return Lesson(
        [(nodes, edges, train, labels[train])] * 10,  # ten steps an epoch
        [(nodes, edges, chosen, labels[chosen])],
        loss,
        (nodes, edges),
        score,
        (nodes, edges),
        {0: {0: "nodes"}, 1: {1: "edges"}},
    )


class Adversarial(Lesson):
    """Generator and discriminator in turns; the discriminator is kept from one `fit` to the next, with what it learnt.

    Scored by the Fréchet distance between real and drawn pictures in the features of a classifier of them (Heusel et
    al. 2017, arXiv 1706.08500), once for each of some draws.
    """

    def fit(self, net: nn.Module, step: lp.Finetune) -> nn.Module:
        discriminator = self.beside
        assert discriminator is not None
        torch.manual_seed(step.seed)
        rivals = (net, discriminator)
        first, second = (torch.optim.Adam(each.parameters(), step.lr, (0.5, 0.999)) for each in rivals)
        for rival in rivals:
            rival.train()
        for _ in range(step.epochs):
            for (real,) in self.train:
                drawn = net(torch.randn(len(real), models.NOISE, 1, 1))
                told = discriminator(torch.cat([real, drawn.detach()])).chunk(2)
                _step(second, F.softplus(-told[0]).mean() + F.softplus(told[1]).mean())
                _step(first, F.softplus(-discriminator(drawn)).mean())
        return net.eval()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def rivals(classifier: nn.Module) -> Lesson:
    """`classifier`: a trained `kinds_models.cnn`."""
    features = nn.Sequential(*list(classifier)[:-1]).eval()  # type: ignore[call-overload]
    wanted = _moments(answers(features, pictures()["test"][0]))
    noise = torch.randn(DRAWS, DRAWN, models.NOISE, 1, 1, generator=torch.Generator().manual_seed(0))

    def score(net: nn.Module) -> Tensor:
        drawn = ((answers(net, z) + 1) / 2 for z in noise)
        seen = (answers(features, (x - fashion.MEAN) / fashion.DEVIATION) for x in drawn)
        return torch.tensor([_frechet(*wanted, *_moments(x)) for x in seen], dtype=torch.float64)

    torch.manual_seed(1)
    judge, real = models.discriminator(), shuffled(2 * pixels("train")[:10_000] - 1, size=64)
    return Adversarial(real, None, _no_loss, (noise[0, :64],), score, beside=judge)


def _no_loss(net: nn.Module, batch: Any) -> Tensor:
    raise NotImplementedError("two networks, two losses: Adversarial.fit")


def _moments(features: Tensor) -> Tensors:
    x = features.double()
    return x.mean(0), x.T.cov()


def _frechet(mean: Tensor, spread: Tensor, other_mean: Tensor, other_spread: Tensor) -> float:
    roots = torch.linalg.eigvals(spread @ other_spread).real.clamp(min=0).sqrt()
    return float((mean - other_mean).square().sum() + spread.trace() + other_spread.trace() - 2 * roots.sum())
