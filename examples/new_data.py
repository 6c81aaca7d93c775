"""New classes for a network that is not to forget the old ones: by replay, by distillation from what it was, by both.

A network that tells digits 0 to 4 apart learns 5 to 9 with a second head. The columns *old* and *new* say how many
digits each head tells right among its own five, as Learning without Forgetting does (Li and Hoiem, 2016, arXiv
1606.09282); *all ten* asks both heads at once. Test digits, five seeds: mean (lowest to highest).

The learning rate of each way is the best of six by the mean of *old* and *new* on the validation digits, over three
other seeds: `python examples/new_data.py choose` prints how they compare. The first way is shown a second time, with
the rate that is best for the new digits alone.
"""

import sys

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import data
import lilliput as lp

WAYS = {  # are 50 old digits kept and shown again, is the network as it was the teacher, learning rates
    "new digits only": (False, False, (3e-4, 1e-2)),
    "replay": (True, False, (3e-3,)),
    "distillation": (False, True, (1e-2,)),
    "replay and distillation": (True, True, (1e-2,)),
}
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
CHOOSE = sys.argv[1:] == ["choose"]
torch.set_num_threads(1)  # more threads gain nothing on layers this small


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU()),
        )
        self.old, self.new = nn.Linear(64, 5), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.body(x)
        return self.old(seen), self.new(seen)  # distillation compares the first output: the old classes alone


def loss_of_old(net: nn.Module, batch: list[Tensor]) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0])[0], batch[1])


def loss_of_all(net: nn.Module, batch: list[Tensor]) -> Tensor:
    return nn.functional.cross_entropy(torch.cat(net(batch[0]), 1), batch[1])


def batches(*parts: data.Labelled) -> DataLoader[tuple[Tensor, ...]]:
    inputs, labels = (torch.cat(held) for held in zip(*parts, strict=True))
    return DataLoader(TensorDataset(inputs, labels), 50, shuffle=True)


def of_classes(part: data.Labelled, low: int, high: int) -> data.Labelled:
    rows = (part.labels >= low) & (part.labels <= high)
    return data.Labelled(part.inputs[rows], part.labels[rows])


def trained_on_old(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    task = lp.Task(TwoHeads(), train=batches(old), loss=loss_of_old)
    return lp.train(task, lp.Finetune(epochs=10, lr=1e-3, seed=seed)).model


def trained_on_new(net: nn.Module, way: str, lr: float, seed: int) -> nn.Module:
    replays, distils, _ = WAYS[way]
    kept = data.Labelled(*(x[50 * seed : 50 * (seed + 1)] for x in old))  # ten of each class
    task = lp.Task(net, train=batches(new, *[kept] * (12 if replays else 0)), loss=loss_of_all)
    distill = (lp.distill.LogitKD(temperature=2.0),) if distils else ()
    return lp.train(task, lp.Finetune(epochs=5, lr=lr, seed=seed, distill=distill)).model


@torch.no_grad()
def accuracies(net: nn.Module, part: data.Labelled) -> Tensor:
    """In percent: old among old, new among new, all among all."""
    scores = net(part.inputs)
    is_old, both = part.labels < 5, torch.cat(scores, 1).argmax(1)
    right = [
        scores[0].argmax(1)[is_old] == part.labels[is_old],
        scores[1].argmax(1)[~is_old] + 5 == part.labels[~is_old],
        both == part.labels,
    ]
    return torch.stack([100 * found.float().mean() for found in right])


def row(name: str, found: list[Tensor]) -> str:
    each = torch.stack(found)  # [seeds, 3]
    cells = zip(each.mean(0), each.amin(0), each.amax(0), strict=True)
    return f"{name:<24}" + "".join(f"{mean:6.1f} ({low:4.1f} to {high:4.1f})" for mean, low, high in cells)


digits = data.digits()
old, new = of_classes(digits.train, 0, 4), of_classes(digits.train, 5, 9)

part, seeds = (digits.validation, range(5, 8)) if CHOOSE else (digits.test, range(5))
before = [trained_on_old(seed) for seed in seeds]
print(f"{'accuracy, %':<24}{'old':>8}{'new':>21}{'all ten':>21}")
print(row("before", [accuracies(net, part) for net in before]))
for way, (_, _, rates) in WAYS.items():
    for lr in RATES if CHOOSE else rates:
        after = [trained_on_new(net, way, lr, seed) for seed, net in zip(seeds, before, strict=True)]
        print(row(way, [accuracies(net, part) for net in after]), f"  lr={lr:g}")
