"""Whether what a library makes of a network's config, as it loads a checkpoint, is the network that was saved."""

from __future__ import annotations

from torch import nn

from lilliput.errors import InputError
from lilliput.model.carrier.carrier import plain_class
from lilliput.model.carrier.config import is_config
from lilliput.model.surgery.config_fit import Unmade, made, shapes_of


def check_made_again(model: nn.Module) -> None:
    """Refuse to save what would be loaded as a network of other sizes, its missing parts filled at random."""
    kind, config = plain_class(model), vars(model).get("config")
    why = ""
    if not is_config(config):
        why = "no config that it holds tells of which sizes it is"
    else:
        try:
            found = shapes_of(made(kind, config, "meta"))
        except Unmade as error:
            why = f"its class is not made by its config alone ({error})"
        else:
            held = shapes_of(model)
            why = next(
                (_told(name, held, found) for name in {**held, **found} if held.get(name) != found.get(name)), ""
            )
    if why:
        raise InputError(
            "from_pretrained would make another network of this checkpoint",
            where=kind.__name__,
            why=why,
            next="write it by lilliput.save, and read it by lilliput.load",
        )


def _told(name: str, held: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> str:
    a, b = (list(shapes[name]) if name in shapes else "missing" for shapes in (held, found))
    return f"{name} is {a} here, and {b} in what the config makes"
