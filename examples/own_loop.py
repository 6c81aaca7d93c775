"""A network of 2-bit weights, trained on in a plain PyTorch loop: `lp.formats.unfreeze` before, `freeze` after."""

import sys

import torch
from torch import nn

import data
import lilliput as lp

OUT = sys.argv[1] if len(sys.argv) > 1 else "out/own_loop"
torch.set_num_threads(1)  # more threads gain nothing on layers this small


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 5), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def fit(net: nn.Module, epochs: int, lr: float) -> None:
    """The loop that is one's own: any optimizer, any loss."""
    optimizer = torch.optim.AdamW(net.parameters(), lr)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(digits.train.inputs)).split(64):
            loss = nn.functional.cross_entropy(net(digits.train.inputs[rows]), digits.train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    return float((net(digits.test.inputs).argmax(1) == digits.test.labels).float().mean())


torch.manual_seed(0)
net, digits = network(), data.digits()
fit(net, epochs=8, lr=2e-3)
print(f"as trained: {accuracy(net):.1%} of {len(digits.test.labels)} test digits")

task = lp.Task(net, calibrate=list(digits.train.inputs[:256].split(64)))
recipe = lp.Recipe([lp.Quantize(weights=lp.Int(2))])
small = lp.compress(
    task, recipe, target=lp.targets.OnnxRuntime(threads=1, seconds=2)
).model  # a copy; `net` stays as it is
size = sum(lp.save(f"{OUT}/before.lil", small).values())
print(f"weights of 2 bits: {accuracy(small):.1%}, {size:,} bytes")

lp.formats.unfreeze(small)  # before the optimizer is made: each encoded tensor now has a parameter behind it
fit(small, epochs=4, lr=1e-3)
lp.formats.freeze(small)  # codes again
size = sum(lp.save(f"{OUT}/net.lil", small).values())
print(f"after the loop: {accuracy(small):.1%}, {size:,} bytes")

codes = small[0].weight_encoded.codes
again = lp.load(f"{OUT}/net.lil", into=network())
print(f"codes of the first layer: {codes.unique().tolist()}")
print("The same bits after loading:", torch.equal(again(digits.test.inputs), small(digits.test.inputs)))
