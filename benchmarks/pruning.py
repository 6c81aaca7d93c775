"""Networks of 2.1 and 4 times fewer multiply-accumulates: ours and torch-pruning, after the same training.

A ResNet-20 and a MobileNetV2-style network on Fashion-MNIST. Both tools prune the same trained network by magnitude to
the same share of multiply-accumulates, counted in the same way. Ours chooses over all layers together, widths in
multiples of 16 channels, which kernels take at once with AVX-512; torch-pruning takes one ratio for all layers,
widths in multiples of eight. What is left is trained alike: the first 20,000 training pictures once, 156 batches of 128
in an order that the seed decides, SGD with momentum and a cosine decay, on one thread, no distillation; the ResNet in
bfloat16 autocast, the other in float32, which is faster there. That is little training: it compares the tools, and is
not what a pruned network can reach. The test set is read once a training, at its end; that ours chooses over all layers
was found on the training set's last 10,000 pictures.

torch-pruning runs in an environment of its own (see pruning_peers.py), whose Python the variable PEERS_PYTHON names.
What was answered lies in out/bench/pruning and is not asked again, so a run that was killed goes on.

    PEERS_PYTHON=peers/bin/python make bench NAME=pruning
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import scipy.stats
import torch
from table import write
from timings import Taken, timed
from torch import Tensor, nn

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.measure import macs, mean, paired_difference, parameters
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.signature import Signature
from lilliput.progress import silent

ROOT = Path(__file__).parents[1]
OUT = Path("out") / "bench" / "pruning"
OURS, THEIRS = TOOLS = "lilliput", "torch-pruning"
NETWORKS: dict[str, Callable[[], nn.Module]] = {"ResNet-20": fashion.resnet20, "MobileNetV2": fashion.mobilenet}
SHARES = {2.1: 1 / 2.1, 4.0: 0.2525}  # the stem's input cannot shrink: half of all widths leave a little over 1/4
PICTURES, SEEDS, MARGIN = 20_000, 5, 0.5  # the margin in points of accuracy
STEP = lp.Finetune(
    epochs=1,
    optimizer="SGD",
    lr=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="cosine",
    warmup=0.1,
)
STEPS = {"ResNet-20": replace(STEP, precision="bf16"), "MobileNetV2": STEP}
Data = tuple[Tensor, Tensor]
Right = np.ndarray[Any, np.dtype[np.float64]]  # [pictures], 1 where the class was found


@dataclass(frozen=True)
class Case:
    """One network, and how many times fewer multiply-accumulates are asked for."""

    network: str
    ratio: float

    @functools.cached_property
    def dense(self) -> nn.Module:
        return NETWORKS[self.network]()

    @functools.cached_property
    def small(self) -> dict[str, nn.Module]:
        """What each tool leaves of the network."""
        return {OURS: self._ours(), THEIRS: self._theirs()}

    def _ours(self) -> nn.Module:
        task = lp.Task(self.dense, example=torch.zeros(1, 1, 28, 28))
        driver, _ = begin(task, lp.targets.OnnxRuntime(threads=1), Store(), silent)
        follow(lp.Recipe([lp.Prune("channels", macs=SHARES[self.ratio], scope="global", multiple=16)]), driver)
        return driver.model

    def _theirs(self) -> nn.Module:
        dense, small = self.path("dense.pt"), self.path(f"{THEIRS}.pt")
        if not small.exists():
            torch.save(self.dense, dense)
            script = Path(__file__).with_name("pruning_theirs.py")
            command = [os.environ["PEERS_PYTHON"], script, dense, str(SHARES[self.ratio]), small]
            subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=True)
        found: nn.Module = torch.load(small, weights_only=False)
        return found

    def path(self, name: str) -> Path:
        return OUT / f"{self.network} {self.ratio:g} {name}"

    def trained(self, tool: str, seed: int, data: Data, test: Data) -> Right:
        return kept(self.path(f"{tool} {seed}.npy"), lambda: right(self._train(tool, seed, data), test))

    def _train(self, tool: str, seed: int, data: Data) -> nn.Module:
        net = copy.deepcopy(self.small[tool]).to(memory_format=torch.channels_last)
        task = lp.Task(net, train=fashion.batches(*data), loss=fashion.loss)
        return lp.train(task, replace(STEPS[self.network], seed=seed)).model.eval()

    def untrained(self, tool: str, test: Data) -> Right:
        name = self.path(f"{tool} untrained.npy")
        return kept(name, lambda: right(self.dense if tool == "dense" else self.small[tool], test))

    def done(self, tool: str) -> dict[int, Right]:
        paths = {seed: self.path(f"{tool} {seed}.npy") for seed in range(SEEDS)}
        return {seed: np.load(path).astype(float) for seed, path in paths.items() if path.exists()}


def kept(path: Path, compute: Callable[[], Right]) -> Right:
    if not path.exists():
        np.save(path, compute().astype(bool))
    found: Right = np.load(path).astype(float)
    return found


def right(net: nn.Module, test: Data) -> Right:
    return fashion.right(net, *test).numpy().astype(float)


def latencies(case: Case) -> Taken:
    """Of the network and what the tools leave of it, at batch 1 in ONNX Runtime, in turns."""
    example, target = torch.zeros(1, 1, 28, 28), lp.targets.OnnxRuntime(threads=1)
    inputs, files = Inputs.of(example), {}
    for name, net in {"dense": case.dense, **case.small}.items():
        files[name] = lp.export(case.path(f"{name}.onnx"), net, example, target=target)
    with torch.no_grad():
        signature = Signature.of(inputs, inputs.call(case.dense))
    return timed(files, target, signature, inputs, rounds=15)


def rows_of(case: Case, test: Data) -> list[dict[str, Any]]:
    done = {tool: case.done(tool) for tool in TOOLS}
    seeds = sorted(done[OURS].keys() & done[THEIRS].keys())
    if not seeds:
        return []
    taken, example = latencies(case), (torch.zeros(1, 1, 28, 28),)
    means = {tool: np.mean([done[tool][seed] for seed in seeds], 0) for tool in done}
    dense = case.untrained("dense", test)
    rows = []
    for tool, net in case.small.items():
        drop = paired_difference(dense, means[tool])
        accuracies = [100 * done[tool][seed].mean() for seed in seeds]
        row = {
            "network": case.network,
            "tool": tool,
            "macs_ratio_asked": case.ratio,
            "macs_ratio": macs(case.dense, example).total / macs(net, example).total,
            "parameters": parameters(net),
            "parameters_dense": parameters(case.dense),
            "dense_accuracy_percent": 100 * dense.mean(),
            "untrained_accuracy_percent": 100 * case.untrained(tool, test).mean(),
            "accuracy_percent": 100 * means[tool].mean(),
            "accuracies": " ".join(f"{accuracy:.2f}" for accuracy in accuracies),
            "seeds": len(seeds),
            "training_pictures": PICTURES,
            "minus_dense": 100 * drop.value,
            "minus_dense_low": 100 * drop.low,
            "minus_dense_high": 100 * drop.high,
            **taken.row("faster_than_dense", "dense", tool),
            "latency_ms": taken.ms(tool),
        }
        rows.append(row | (_beside(done[OURS], done[THEIRS], seeds) if tool == OURS else {}))
    return rows


def _beside(ours: dict[int, Right], theirs: dict[int, Right], seeds: list[int]) -> dict[str, Any]:
    """Ours minus theirs in points: over the test pictures with seeds averaged, and over the seeds by Student's t."""
    each = [100 * (ours[seed] - theirs[seed]) for seed in seeds]
    change = mean(np.mean(each, 0))
    row = {"minus_theirs": change.value, "minus_theirs_low": change.low, "minus_theirs_high": change.high}
    if len(seeds) < 2:
        return row
    low, high = scipy.stats.ttest_1samp([float(x.mean()) for x in each], 0).confidence_interval(0.95)
    row |= {"minus_theirs_seeds_low": float(low), "minus_theirs_seeds_high": float(high)}
    return row | {"not_inferior": min(change.low, float(low)) > -MARGIN}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--ratios", nargs="+", type=float, choices=list(SHARES), default=list(SHARES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    (pictures, labels), test = fashion.read("train"), fashion.read("t10k")
    data = pictures[:PICTURES], labels[:PICTURES]
    for case in (Case(network, ratio) for network in asked.networks for ratio in asked.ratios):
        for seed in asked.seeds:
            for tool in asked.tools:
                accuracy = 100 * case.trained(tool, seed, data, test).mean()
                print(f"{case.network}, {case.ratio:g}, {tool}, seed {seed}: {accuracy:.2f} %", flush=True)
    cases = [Case(network, ratio) for network in NETWORKS for ratio in SHARES]
    write("pruning", [row for case in cases for row in rows_of(case, test)], 1)


if __name__ == "__main__":
    main()
