"""Number formats: how weights, and values that flow, are represented; which of them each gets; and other tools' files.

>>> from lilliput.formats import Codebook, Int
>>> Int(4, group=32), Codebook(8)
(Int(bits=4, group=32), Codebook(n=8))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lilliput.encodings import (
    NF4,
    BFloat16,
    Blockwise,
    Codebook,
    Exponent8,
    Fixed,
    Float16,
    Int,
    LowRank,
    MiniFloat,
    PowerOfTwo,
    Signs,
    Sparse,
    mxfp4,
)
from lilliput.exporters import compressed_tensors, gguf
from lilliput.importers import from_onnx
from lilliput.model.carrier.carrier import freeze, to_dense, unfreeze
from lilliput.techniques.assignment import Assignment
from lilliput.web.page import save_page

__all__ = [
    "NF4",
    "Assignment",
    "BFloat16",
    "Blockwise",
    "Codebook",
    "Exponent8",
    "Fixed",
    "Float16",
    "Int",
    "LowRank",
    "MiniFloat",
    "PowerOfTwo",
    "Signs",
    "Sparse",
    "freeze",
    "from_onnx",
    "mxfp4",
    "save_gguf",
    "save_page",
    "save_pretrained",
    "to_dense",
    "unfreeze",
]


def save_gguf(path: str | Path, model: nn.Module, tokenizer: Any = None) -> Path:
    """Write a decoder of transformers as GGUF, the file of llama.cpp: codes as they are, config and tokenizer too.

    Weights are floats, or ``Int(4 or 5, group=32, scale=Float16())`` (Q4_0, Q5_0), the same with ``symmetric=False,
    minimum=Float16()`` (Q4_1, Q5_1), ``Int(8, group=32, scale=Float16())`` (Q8_0), or half precision; groups may be
    multiples of 32. `tokenizer` is a fast one of transformers; without it, llama.cpp is given token numbers. The file
    is read back by llama.cpp's own package `gguf`, and must hold the module's numbers.

    Raises InputError where `gguf` is missing, and for networks and tokenizers that the format has no words for;
    ExportError for an encoding that none of its blocks holds exactly. Sources: gguf-py and ggml-quants of llama.cpp.

    >>> import tempfile, torch, transformers
    >>> sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    >>> net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_gguf(f"{folder}/net.gguf", net).stat().st_size > 4 * sum(p.numel() for p in net.parameters())
    True
    """
    gguf.write(Path(path), model, tokenizer)
    return Path(path)


def save_pretrained(folder: str | Path, model: nn.Module, tokenizer: Any = None) -> Path:
    """Write a network of transformers as a folder that its `from_pretrained`, and vLLM, load; codes as they are.

    Linear layers may be ``Int(4 or 8)`` around zero, a scale a tensor, channel or group, and are written as
    compressed-tensors (`pack-quantized`); all else is floats. Config, generation config and `tokenizer` go with them.
    Whoever loads it needs the package `compressed-tensors`; the answers are the module's where it is loaded in the
    module's own type.

    Raises InputError for a folder that is there, and for what is no network of transformers; ExportError for an
    encoding that the format has no words for. Source: the package compressed-tensors of vLLM.

    >>> import tempfile, transformers
    >>> sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    >>> net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(one.name for one in save_pretrained(f"{folder}/net", net).iterdir())
    ['config.json', 'generation_config.json', 'model.safetensors']
    """
    compressed_tensors.write(Path(folder), model, tokenizer)
    return Path(folder)
