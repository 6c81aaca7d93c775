"""Rows as inputs of a network of transformers: a batch each, made by its own tokenizer or processor."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.errors import InputError, reason
from lilliput.pretrained.folder import Held
from lilliput.pretrained.rows import Row

IGNORED = -100  # a label of what is not judged, as transformers has it
_LONGEST = 512  # tokens of a text, where nobody says
_UNKNOWN = 0.5  # of the words in a batch, beyond which the tokenizer is not theirs
_SAID = 32  # tokens that a network says of a sound, where nobody wrote down what was said


def longest(held: Held, asked: int | None) -> int:
    """How many tokens a text may have: what is asked, or what tokenizer and network take, at most 512."""
    places = getattr(held.config, "max_position_embeddings", None) or _LONGEST
    return asked or min(int(places), int(getattr(held.tokenizer, "model_max_length", _LONGEST)), _LONGEST)


def texts(held: Held, rows: Sequence[Row], length: int | None) -> dict[str, Any]:
    """input_ids and what goes with them [texts, tokens], padded to the longest."""
    pairs = [str(row["second"]) for row in rows] if all("second" in row for row in rows) else None
    return dict(_tokens(held, [str(row["text"]) for row in rows], pairs, length))


def words(held: Held, rows: Sequence[Row], length: int | None) -> dict[str, Any]:
    """As `texts`, of words [texts, tokens]; labels, one a word, stand at the first token of each."""
    split = all("words" in row for row in rows)
    given = [list(row["words"]) if split else str(row["text"]) for row in rows]
    made = _tokens(held, given, None, length, split=split)
    if not (split and all("label" in row for row in rows)):
        return dict(made)
    labels = torch.stack(
        [_at_words(made.word_ids(i), row["label"], made["input_ids"].shape[1]) for i, row in enumerate(rows)]
    )
    return {**made, "labels": labels}


def windows(held: Held, rows: Sequence[Row], length: int | None) -> list[Row]:
    """Texts as one run of tokens, in windows of `length`; of few tokens, two that are shorter."""
    end = [] if held.tokenizer.eos_token_id is None else [held.tokenizer.eos_token_id]
    ids = [one for row in rows for one in [*held.tokenizer(str(row["text"]))["input_ids"], *end]]
    width = min(longest(held, length), len(ids) // 2)
    if width < 2:
        raise InputError(f"holds {len(ids)} tokens", where="data", next="give a text of some hundreds at least")
    return [{"ids": ids[i : i + width]} for i in range(0, len(ids) - width + 1, width)]


def passages(held: Held, rows: Sequence[Row], length: int | None) -> dict[str, Any]:
    """input_ids [windows, tokens], and as labels the same: each token is judged by those before it."""
    ids = torch.tensor([row["ids"] for row in rows])
    return {"input_ids": _within(held, ids), "labels": ids}


def steps(held: Held, rows: Sequence[Row], length: int | None) -> dict[str, Any]:
    """The second half of each window as input_ids, and as `past` what the network keeps of the first."""
    made = passages(held, rows, length)
    ids = made["input_ids"]
    with torch.no_grad():
        past = held.model(ids[:, : ids.shape[1] // 2], held.model.nothing(len(ids)))["past"]
    rest = ids[:, ids.shape[1] // 2 :]
    return {"input_ids": rest, "past": past, "labels": rest}


def images(held: Held, rows: Sequence[Row], length: int | None) -> dict[str, Any]:
    """pixel_values [images, channels, height, width], as the processor makes them."""
    made = held.processor(images=[_image(row["image"]) for row in rows], return_tensors="pt")
    return {key: x for key, x in made.items() if isinstance(x, Tensor)}


def sounds(held: Held, rows: Sequence[Row], length: int | None) -> dict[str, Any]:
    """input_values [sounds, samples] or input_features [sounds, …], and for what speaks, what it said before."""
    rate = int(held.processor.sampling_rate)
    heard = [_sound(row["sound"], rate) for row in rows]
    made = dict(held.processor(heard, sampling_rate=rate, padding=_padding(held), return_tensors="pt"))
    if not getattr(held.config, "is_encoder_decoder", False):
        return made
    name = held.model.main_input_name
    return {name: made[name], "decoder_input_ids": _said(held, rows, made[name])}


def _padding(held: Held) -> bool | str:
    """To the longest; what computes with images of sound wants them all of one length."""
    return True if held.model.main_input_name == "input_values" else "max_length"


def _said(held: Held, rows: Sequence[Row], features: Tensor) -> Tensor:
    """Tokens that the decoder is given: of what was said, or where nobody wrote it down, what the network says."""
    start = held.config.decoder_start_token_id
    if held.tokenizer is not None and all("said" in row for row in rows):
        ids = held.tokenizer([str(row["said"]) for row in rows], padding=True, return_tensors="pt")["input_ids"]
        return torch.cat([torch.full((len(ids), 1), start), ids], dim=1)[:, :-1]
    with torch.no_grad():
        said: Tensor = held.model.generate(features.to(held.model.dtype), max_new_tokens=_SAID, do_sample=False)
    return said


def _tokens(held: Held, given: Any, pairs: Any, length: int | None, *, split: bool = False) -> Any:
    several = len(given) > 1
    if several and held.tokenizer.pad_token_id is None:
        held.tokenizer.pad_token = held.tokenizer.eos_token
    known = {"truncation": True, "max_length": longest(held, length), "padding": several, "return_tensors": "pt"}
    try:
        made = held.tokenizer(given, pairs, is_split_into_words=split, **known)
    except Exception as error:  # whatever a tokenizer says of texts
        raise InputError("cannot be made tokens of", where="data", why=reason(error), next="give texts") from error
    _check_known(held, _within(held, made["input_ids"]))
    return made


def _within(held: Held, ids: Tensor) -> Tensor:
    """The ids, of which none is beyond the network's embeddings."""
    known = held.model.get_input_embeddings().num_embeddings
    if int(ids.max()) >= known:
        raise InputError(
            f"gives the token {int(ids.max())}, and the network knows {known:,}",
            where="tokenizer",
            next="give the tokenizer that the network was trained with",
        )
    return ids


def _check_known(held: Held, ids: Tensor) -> None:
    """Refuse texts of which the tokenizer knows few words: what it makes of them says nothing."""
    absent = held.tokenizer.unk_token_id
    marks = [one for one in held.tokenizer.all_special_ids if one != absent]
    words = ids[~torch.isin(ids, torch.tensor(marks, dtype=ids.dtype))]
    unknown = 0.0 if absent is None else float((words == absent).float().mean())
    if len(words) and unknown > _UNKNOWN:
        raise InputError(
            f"{100 * unknown:.0f} % of the words are unknown to the tokenizer",
            where="data",
            next="give texts in the network's language, and the tokenizer that it was trained with",
        )


def _at_words(places: Sequence[int | None], labels: Sequence[int], width: int) -> Tensor:
    found, before = torch.full((width,), IGNORED), None
    for i, word in enumerate(places):
        if word is not None and word != before and word < len(labels):
            found[i] = int(labels[word])
        before = word
    return found


def _image(given: Any) -> Any:
    """An image in colour of a file, of PIL, or an array [height, width(, channels)] of bytes."""
    from PIL import Image

    try:
        if isinstance(given, str | Path):
            given = Image.open(given)
        elif isinstance(given, np.ndarray | Tensor):
            given = Image.fromarray(np.asarray(given))
        return given.convert("RGB")
    except Exception as error:  # whatever PIL says of a file
        raise InputError("is no image", where=str(given)[:80], why=reason(error), next="give PNG or JPEG") from error


def _sound(given: Any, rate: int) -> Any:
    """One channel [samples] of a .wav file, an array, or {"array", "sampling_rate"}, from -1 to 1."""
    found = rate
    if isinstance(given, dict):
        given, found = given["array"], int(given["sampling_rate"])
    elif isinstance(given, str | Path):
        given, found = _wav(Path(given))
    if found != rate:
        raise InputError(f"is of {found} Hz", where="data", next=f"resample it to the {rate} Hz of the network")
    return np.asarray(given, dtype=np.float32)


def _wav(path: Path) -> tuple[Any, int]:
    try:
        with wave.open(str(path)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            data = np.frombuffer(file.readframes(file.getnframes()), dtype={1: "u1", 2: "<i2", 4: "<i4"}[width])
    except (OSError, EOFError, KeyError, wave.Error) as error:
        raise InputError("is no sound", where=str(path), why=reason(error), next="write .wav of 16 bits") from error
    middle, span = (128, 128) if width == 1 else (0, 1 << (8 * width - 1))
    return ((data.astype(np.float32) - middle) / span).reshape(-1, channels).mean(1), rate
