"""The network and the processor in a folder of Hugging Face, read from this disk alone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lilliput.errors import InputError, not_installed, reason

_MAKES = re.compile("token|vocab|merges|spiece|sentencepiece|processor|extractor")  # in names of files


@dataclass(frozen=True, eq=False)
class Held:
    """A network of transformers, and what makes its inputs: a tokenizer, and a processor of images or sounds."""

    model: Any
    tokenizer: Any = None
    processor: Any = None

    @property
    def config(self) -> Any:
        return self.model.config


def network(given: str | Path | nn.Module, auto: tuple[str, ...], where: str = "model") -> tuple[Any, Path | None]:
    """The network in a folder, by the first of these classes of transformers that takes its config; and the folder.

    Raises InputError for what is no folder of a network, is not on this disk, and holds no weights of a part.
    """
    if isinstance(given, nn.Module):
        if not hasattr(given, "config"):
            raise InputError(
                "is no network of transformers", where=type(given).__name__, next="give lp.Task(model, calibrate=…)"
            )
        return given, None
    place = Path(given)
    transformers = imported()
    if place.is_dir():
        _check_folder(place)
    elif place.exists() or place.is_absolute() or str(given).count("/") > 1:
        raise InputError("is no folder", where=str(given), next="give the folder of a network, with its config.json")
    config = _read(given, place, transformers.AutoConfig)
    model, told = _read(
        given, place, _class(transformers, auto, config, str(given)), dtype="auto", output_loading_info=True
    )
    _check_whole(model, told, str(given))
    return model.eval(), place if place.is_dir() else None


def maker(source: Any, model: Any, kind: str, reads: str) -> Any:
    """What makes inputs of what the task `reads`: the class `kind` of transformers, from the folder of a network."""
    if source is None:
        raise InputError(
            f"has no folder where what makes inputs of a {reads} could lie",
            where=type(model).__name__,
            next="give processor=",
        )
    why = "there are files of the network alone"  # of which some tokenizers make one without words
    place = Path(source)
    if not place.is_dir() or any(_MAKES.search(one.name) for one in place.iterdir()):
        try:
            return getattr(imported(), kind).from_pretrained(str(source), local_files_only=True)
        except Exception as error:  # whatever transformers says of a folder
            why = reason(error)
    raise InputError(
        f"holds nothing that makes inputs of a {reads}",
        where=str(source),
        why=why,
        next="put the files of its tokenizer or processor beside it, or give processor=",
    )


def imported() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise not_installed("transformers", error=error) from None
    return transformers


def _check_folder(place: Path) -> None:
    config = place / "config.json"
    if not config.is_file():
        raise InputError("holds no config.json", where=str(place), next="give the folder of one network")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("is no JSON", where=str(config), why=reason(error), next="fetch the folder again") from error


def _class(transformers: Any, auto: tuple[str, ...], config: Any, where: str) -> Any:
    classes = [getattr(transformers, name) for name in auto]
    fitting = [one for one in classes if type(config) in one._model_mapping]
    if not fitting:
        made_for = ", ".join(getattr(config, "architectures", None) or ["nothing"])
        raise InputError(
            f"is a {type(config).__name__.removesuffix('Config')}, of which transformers has no {' or '.join(auto)}",
            where=where,
            why=f"its config says {made_for}",
            next="name the task that it was trained for",
        )
    return fitting[0]


def _check_whole(model: Any, told: Any, where: str) -> None:
    """Refuse a network of which a part is drawn by chance: the folder has no weights for it."""
    missing = sorted(told.get("missing_keys", ()))
    if missing:
        made_for = ", ".join(getattr(model.config, "architectures", None) or ["another network"])
        raise InputError(
            f"holds no weights of {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
            where=where,
            why=f"it was saved as {made_for}, and the task wants {type(model).__name__}",
            next="name the task that it was trained for",
        )


def _read(given: str | Path, place: Path, cls: Any, **more: Any) -> Any:
    try:
        return cls.from_pretrained(str(given), local_files_only=True, **more)
    except Exception as error:  # whatever transformers says of a folder
        raise _unread(given, place, error) from error


def _unread(given: str | Path, place: Path, error: Exception) -> InputError:
    if place.is_dir():
        return InputError("cannot be read", where=str(given), why=reason(error), next="see whether all files are there")
    return InputError(
        "is on no disk here",
        where=str(given),
        why="nothing is downloaded unasked",
        next=f"hf download {given} --local-dir FOLDER, and give the folder",
    )
