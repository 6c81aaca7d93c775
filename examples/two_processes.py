"""Training in one process or in several: each calls `lp.train` alike and takes its share of every batch.

All of these train the same network, to rounding:

    python examples/two_processes.py
    torchrun --standalone --nproc-per-node 2 examples/two_processes.py
    accelerate launch --multi_gpu --num_processes 2 examples/two_processes.py

The last works without a GPU, too; with `--cpu` accelerate starts one process, however many are asked for.
"""

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import data
import lilliput as lp

torch.set_num_threads(1)  # more threads gain nothing on layers this small


def loss(net: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


torch.manual_seed(0)  # the same network in every process
net = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
digits = data.digits()
task = lp.Task(
    net,
    train=DataLoader(TensorDataset(*digits.train), 50, shuffle=True),  # batches that the processes can share out
    validate=[digits.validation],
    loss=loss,
)
trained = lp.train(task, lp.Finetune(epochs=5, lr=2e-3, schedule="cosine"))

if int(os.environ.get("RANK", "0")) == 0:  # the main process, or the only one
    with torch.no_grad():
        right = trained.model(digits.test.inputs).argmax(1) == digits.test.labels
    print(f"processes: {os.environ.get('WORLD_SIZE', '1')}; {right.float().mean():.1%} of {len(right)} test digits")
    print("validation losses:", *(f"{epoch['validation_loss']:.5f}" for epoch in trained.history))
