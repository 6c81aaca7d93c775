"""A LeNet trained here on real digits, then pruned and quantized by a recipe of one's own."""

import sys

import torch
from torch import nn

import data
import lilliput as lp

OUT = sys.argv[1] if len(sys.argv) > 1 else "out/lenet"


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2))
        )
        self.classes = nn.Sequential(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classes(self.features(x))


torch.manual_seed(0)
net, digits = LeNet(), data.digits()
optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
for _ in range(8):
    for rows in torch.randperm(len(digits.train.inputs)).split(64):
        loss = nn.functional.cross_entropy(net(digits.train.inputs[rows]), digits.train.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
net.eval()

task = lp.Task(
    net,
    example=digits.test.inputs[:1],
    calibrate=list(digits.train.inputs[:256].split(64)),
    evaluate=list(digits.test.inputs.split(250)),
    metric=lp.metrics.top1([digits.test]),
    name="LeNet",
)
recipe = lp.Recipe(
    [
        lp.Prune("weights", 0.8, scope="global"),
        lp.Quantize(weights=lp.Int(8), activations=lp.Int(8)),
    ]
)
small = lp.compress(task, recipe, folder=OUT)
print(small)
again = lp.load(f"{OUT}/net.lil", into=LeNet())
print("The same bits after loading:", torch.equal(again(digits.test.inputs), small.model(digits.test.inputs)))
