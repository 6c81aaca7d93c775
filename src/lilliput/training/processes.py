"""Several processes that train one model: what each gets of a batch, what it holds, and what they agree on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.errors import InputError, LilliputError, not_installed, reason
from lilliput.feeding import batch_size
from lilliput.model.carrier.duplicate import duplicate
from lilliput.nested import mapped
from lilliput.techniques.finetune import Finetune


def accelerator_for(step: Finetune) -> Any:
    """accelerate's hold on the processes, or on the only one.

    Raises InputError where accelerate is not installed, or is set up to share out the model itself.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise not_installed("accelerate", where="training", error=error) from error
    AcceleratorState._reset_state()  # an earlier step may have had another precision
    accelerator = Accelerator(
        mixed_precision=step.precision,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],  # `agree` takes the mean of all
    )
    if str(accelerator.distributed_type).endswith(("FSDP", "DEEPSPEED", "MEGATRON_LM")):
        raise InputError(
            f"accelerate is set up for {accelerator.distributed_type}",
            next="launch plain processes, and give Finetune(shard=True) for a model that does not fit one of them",
        )
    return accelerator


def share(batch: Any, part: int, parts: int, where: str) -> Any:
    """The samples of a batch that fall to process `part` of so many: every `parts`-th, so that sizes are equal.

    Raises InputError where the samples do not divide.
    """
    if parts == 1:
        return batch
    size = batch_size(batch)
    if size % parts:
        raise InputError(
            f"{size} samples for {parts} processes", where=where, next="give batches that divide, as by drop_last=True"
        )
    return mapped(lambda x: x[part::parts] if isinstance(x, Tensor) and x.dim() and len(x) == size else x, batch)


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """A model of the user's on `device`: itself where it is there already, or else a copy."""
    here = torch.empty(0, device=device).device  # with its index
    elsewhere = any(x.device != here for x in (*model.parameters(), *model.buffers()))
    return duplicate(model).to(device) if elsewhere else model


def shard(model: nn.Module, accelerator: Any) -> None:
    """Let each process hold a part of every block in a list of blocks, and of the rest (FSDP2)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in list(model.modules()):
        for block in module if isinstance(module, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # also after one that no gradients follow


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The tensors of a model of which each process holds a part, gathered; every process must ask."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole: dict[str, Any] = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return whole


def mean(number: float, accelerator: Any) -> float:
    """The mean of what each process gives."""
    return float(accelerator.reduce(torch.tensor(number, device=accelerator.device), "mean"))


@contextmanager
def together(accelerator: Any) -> Iterator[None]:
    """What fails inside in one process fails in all, with the error of the first: none waits for one that has ended.

    The processes exchange one number where the block ends. One whose memory is used up keeps an error of its own.
    """
    found: Exception | None = None
    try:
        yield
    except Exception as error:
        if accelerator.num_processes == 1:
            raise
        found = error
    if accelerator.num_processes == 1:
        return
    trouble = accelerator.reduce(torch.tensor(float(found is not None), device=accelerator.device), "sum")
    if not bool(trouble):
        return
    from accelerate.utils import gather_object

    parts = next(told for told in gather_object([None if found is None else _told(found)]) if told is not None)
    if found is not None and not isinstance(found, LilliputError):
        raise found
    kind, what, *rest = parts
    raise kind(what, **dict(zip(("where", "why", "next"), rest, strict=True))) from found


def _told(error: Exception) -> tuple[type[LilliputError], str, str, str, str]:
    """An error as another process can raise it."""
    if isinstance(error, LilliputError):
        return type(error), error.what, error.where, error.why, error.next
    return InputError, "training failed in another process", "", reason(error), "see what that one says"


@torch.no_grad()
def agree(model: nn.Module, accelerator: Any) -> None:
    """Let all processes hold the same statistics: each has normalised its own share of the batches."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(accelerator.reduce(buffer.detach().clone(), "mean"))
