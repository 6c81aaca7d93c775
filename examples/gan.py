"""A generator of digits, pruned to half its width and taught again by the discriminator that it was trained with."""

import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy, softplus

import data
import lilliput as lp

OUT = sys.argv[1] if len(sys.argv) > 1 else "out/gan"
torch.set_num_threads(1)  # more threads gain nothing on layers this small


def generator() -> nn.Sequential:
    return nn.Sequential(
        *(nn.ConvTranspose2d(32, 64, 7, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Sigmoid()),
    )


def judge(outputs: int) -> nn.Sequential:
    """The discriminator (one output), and a classifier of digits whose features tell how good drawn ones are."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Flatten(), nn.Linear(64 * 49, 48), nn.LeakyReLU(0.2), nn.Linear(48, outputs)),
    )


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 32, 1, 1)


def compete(generator: nn.Module, discriminator: nn.Module, epochs: int) -> None:
    """The loop that is one's own: two networks and two losses, in turns."""
    draws, tells = (torch.optim.Adam(net.parameters(), 5e-4, (0.5, 0.999)) for net in (generator, discriminator))
    generator.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(digits.train.inputs)).split(64):
            drawn = generator(noise(len(rows)))
            real, false = discriminator(torch.cat([digits.train.inputs[rows], drawn.detach()])).chunk(2)
            step(tells, softplus(-real).mean() + softplus(false).mean())
            step(draws, softplus(-discriminator(drawn)).mean())
    generator.eval()


def step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def distance(generator: nn.Module) -> float:
    """Fréchet's, between 1,000 test digits and as many drawn ones, in the features of the classifier."""
    drawn = generator(torch.randn(1000, 32, 1, 1, generator=torch.Generator().manual_seed(1)))
    first, second = (classifier[:-1](x).double() for x in (digits.test.inputs, drawn))
    spread, other = first.T.cov(), second.T.cov()
    roots = torch.linalg.eigvals(spread @ other).real.clamp(min=0).sqrt()
    apart = (first.mean(0) - second.mean(0)).square().sum()
    return float(apart + spread.trace() + other.trace() - 2 * roots.sum())


torch.manual_seed(0)
digits, classifier = data.digits(), judge(10)
learns = torch.optim.AdamW(classifier.parameters(), 1e-3)
for _ in range(4):
    for rows in torch.randperm(len(digits.train.inputs)).split(64):
        step(learns, cross_entropy(classifier(digits.train.inputs[rows]), digits.train.labels[rows]))
classifier.eval()

net, discriminator = generator(), judge(1)
compete(net, discriminator, epochs=10)
size = sum(lp.save(f"{OUT}/before.lil", net).values())
print(f"as trained: distance {distance(net):.1f}, {size:,} bytes")

pruned = lp.compress(
    lp.Task(net, example=noise(1)),
    lp.Recipe([lp.Prune("channels", 0.5)]),
    target=lp.targets.OnnxRuntime(threads=1, seconds=1),
)
small = pruned.model  # an ordinary module; `net` stays as it is
print(small)
print(f"half the channels: distance {distance(small):.1f}")

compete(small, discriminator, epochs=5)  # the same discriminator, with what it has learnt
size = sum(lp.save(f"{OUT}/net.lil", small).values())
print(f"after the loop: distance {distance(small):.1f}, {size:,} bytes")

lp.export(f"{OUT}/net.onnx", small, noise(1))
again = lp.load(f"{OUT}/net.lil", into=generator())
z = noise(16)
print("The same bits after loading:", torch.equal(again(z), small(z)))
