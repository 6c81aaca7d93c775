"""A network of transformers as a folder that plain `from_pretrained`, and vLLM, load: codes as compressed-tensors.

Linear layers in integers of 4 or 8 bits are written as codes, a little-endian stream of bits in words of 32
(`pack-quantized`), all else as it is. The packages that read it decode the weights, or multiply by them as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.disk import staged_folder
from lilliput.encodings import Encoding, Int
from lilliput.errors import ExportError, InputError, not_installed
from lilliput.model.carrier.carrier import tensors
from lilliput.model.carrier.encoded_tensor import EncodedTensor
from lilliput.model.views.values import value_encodings

_BITS = (4, 8)
_SHARD = "4GB"


def write(folder: Path, model: nn.Module, tokenizer: Any = None) -> None:
    """Write `model`, or the network of transformers within it, with its config and, if given, its `tokenizer`.

    Raises InputError for a folder that is there, and what is no network of transformers; ExportError for an encoding
    that the format has no words for.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("is there already", where=str(folder), next="choose another place, or remove it")
    root, prefix = _pretrained(model)
    for name in value_encodings(model):
        raise ExportError(
            "is rounded as it flows, which the folder has no place for",
            where=name,
            next="encode weights alone: Quantize(activations=None)",
        )
    stored: dict[str, Tensor] = {}
    schemes: dict[Int, list[str]] = {}
    for name, held in _named(model, prefix):
        if isinstance(held, EncodedTensor):
            layer = name.removesuffix(".weight")
            encoding = _taken(name, held, root, layer)
            schemes.setdefault(encoding, []).append(layer)
            stored |= {f"{layer}.{part}": x for part, x in _parts(held, encoding)}
        else:
            stored[name] = held.detach()
    with staged_folder(folder) as staged:
        (place := staged / "net").mkdir()
        _save(place, root, stored, _described(root, schemes))
        if tokenizer is not None:
            tokenizer.save_pretrained(place)
        for one in sorted(
            place.iterdir(), key=lambda one: one.name == "config.json"
        ):  # without which nothing is loaded
            os.replace(one, folder / one.name)


def _pretrained(model: nn.Module) -> tuple[Any, str]:
    """The outermost network of transformers in `model`, and the prefix of its paths."""
    for path, module in model.named_modules():
        if hasattr(module, "config") and hasattr(module, "save_pretrained"):
            return module, f"{path}." if path else ""
    raise InputError(
        "is no network of transformers, which a folder needs a config of",
        where=type(model).__name__,
        next="keep it as .lil: lilliput.save(path, net)",
    )


def _named(model: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor | EncodedTensor]]:
    """What is stored, each under the first of its names within the network; buffers that are not stored are no part."""
    stored = set(model.state_dict(keep_vars=True))
    for paths, held in tensors(model).items():
        own = [path for path in paths if path.startswith(prefix)]
        if own and (isinstance(held, EncodedTensor) or own[0] in stored):
            yield own[0].removeprefix(prefix), held


def _taken(name: str, held: EncodedTensor, root: nn.Module, layer: str) -> Int:
    """The encoding of a linear layer's weight; raises ExportError for all else."""
    encoding: Encoding = held.encoding
    linear = name.endswith(".weight") and isinstance(root.get_submodule(layer), nn.Linear)
    if (
        not linear
        or not isinstance(encoding, Int)
        or encoding.bits not in _BITS
        or encoding.symmetric is False  # packed offsets are written by compressed-tensors, and not read by transformers
        or encoding.axis != 0
        or (encoding.group is not None and held.shape[1] % encoding.group)
    ):
        raise ExportError(
            f"is held as {encoding}, which compressed-tensors has no words for",
            where=name,
            next="encode linear layers alone, as Int(4 or 8), with group= and scale= as you like",
        )
    return encoding


def _parts(held: EncodedTensor, encoding: Int) -> Iterator[tuple[str, Tensor]]:
    parts = held.encoded()
    scale = encoding.parameters(parts)["scale"].detach()
    scale = scale.reshape(-1, 1) if encoding.group is None else scale
    half = scale.half()
    narrow = half if torch.equal(half.to(scale.dtype), scale) else scale
    yield "weight_packed", _packed(parts.tensors()["codes"], encoding.bits)
    yield "weight_scale", narrow.expand(held.shape[0], -1).contiguous()
    yield "weight_shape", torch.tensor(held.shape)


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers [rows, columns] from -2**(bits - 1) on, as int32 [rows, words]."""
    above = (codes.to(torch.int16) + (1 << (bits - 1))).numpy().astype(np.uint8)
    stream = np.unpackbits(above[..., None], axis=-1, count=bits, bitorder="little").reshape(len(above), -1)
    whole = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    return torch.from_numpy(np.packbits(whole, axis=-1, bitorder="little").view("<i4").copy())


def _described(root: Any, schemes: dict[Int, list[str]]) -> dict[str, Any]:
    """The config of the folder: that of the network, and what its layers are held as."""
    config: dict[str, Any] = json.loads(root.config.to_json_string(use_diff=False))
    config["architectures"] = [type(root).__mro__[1 if type(root).__module__.startswith("lilliput") else 0].__name__]
    if not schemes:
        return config
    encoded = {layer for layers in schemes.values() for layer in layers}
    ignored = [path for path, one in root.named_modules() if isinstance(one, nn.Linear) and path not in encoded]
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {"targets": layers, "weights": _scheme(encoding), "input_activations": None}
            for i, (encoding, layers) in enumerate(schemes.items())
        },
        "ignore": ignored,
    }
    return config


def _scheme(encoding: Int) -> dict[str, Any]:
    return {
        "num_bits": encoding.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if encoding.group is None else "group",
        "group_size": encoding.group,
        "dynamic": False,
    }


def _save(place: Path, root: Any, stored: dict[str, Tensor], config: dict[str, Any]) -> None:
    try:
        from huggingface_hub import save_torch_state_dict
    except ImportError as error:
        raise not_installed("huggingface_hub", "safetensors", error=error) from None
    save_torch_state_dict(stored, place, max_shard_size=_SHARD, metadata={"format": "pt"})
    (place / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if getattr(root, "generation_config", None) is not None:
        root.generation_config.save_pretrained(place)
