"""A network of 2-bit weights, trained on by Lightning between `lp.formats.unfreeze` and `lp.formats.freeze`."""

import logging
import sys
import warnings

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import data
import lilliput as lp

OUT = sys.argv[1] if len(sys.argv) > 1 else "out/lightning_loop"
torch.set_num_threads(1)  # more threads gain nothing on layers this small
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # tips
warnings.filterwarnings("ignore", module="lightning")


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 5), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


class Classifier(lightning.LightningModule):
    """Knows nothing of compression."""

    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch: list[torch.Tensor], i: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.lr)


def fit(net: nn.Module, epochs: int, lr: float) -> None:
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    net.train()  # Lightning leaves each module in the mode that it finds
    trainer.fit(Classifier(net, lr), DataLoader(TensorDataset(*digits.train), 64, shuffle=True))
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
print(f"weights of 2 bits: {accuracy(small):.1%}")

lp.formats.unfreeze(small)  # before Lightning asks for the optimizer
fit(small, epochs=4, lr=1e-3)
lp.formats.freeze(small)  # codes again
lp.save(f"{OUT}/net.lil", small)
print(f"after Lightning: {accuracy(small):.1%}")
