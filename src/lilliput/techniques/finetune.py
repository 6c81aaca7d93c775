"""Training that recovers what compression lost, or that makes a student of a teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from lilliput.errors import InputError, RecipeError, nearest
from lilliput.techniques.distill import Term
from lilliput.techniques.plugin import Plugin
from lilliput.techniques.run import Run
from lilliput.techniques.technique import Technique

Schedule = Literal["constant", "linear", "cosine", "step"]
Norm = Literal["l1", "l2", "inf"]
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, repr=False)
class Finetune(Technique):
    """Train the model as it stands: encodings, zeros and ties survive, for the encoded tensors are trained through.

    The task gives `train` batches and a `loss(model, batch)`; with `distill`, also without a loss. The original network
    is the teacher where the task names none. A killed run goes on where it was, with identical results on a CPU.

    >>> Finetune(epochs=2, lr=1e-3, schedule="cosine")
    Finetune(epochs=2, lr=0.001, schedule='cosine')
    """

    epochs: int = 1
    optimizer: str = "AdamW"  # the name of a class in torch.optim
    lr: float = 1e-4  # the highest that the schedule reaches
    weight_decay: float = 0.0
    decay_all: bool = False  # also biases and the gains of normalisations: tensors of one axis
    momentum: float | None = None  # of optimizers that have one; None: the optimizer's own
    schedule: Schedule = "constant"  # after the warm-up: to zero along a line or a cosine, or a tenth after 1/2 and 3/4
    warmup: float = 0.0  # fraction of all steps over which the rate rises from zero
    clip: float | None = None  # largest norm of all gradients together
    clip_norm: Norm = "l2"
    accumulate: int = 1  # batches to a step
    precision: Precision = "no"  # autocast; fp16 with loss scaling
    ema: float | None = None  # decay of the moving average that is kept instead of the last weights, such as 0.999
    patience: int | None = None  # epochs without a better validation loss before it stops; the best epoch is kept
    recalibrate_norms: bool = False  # the statistics of batch normalisations over the training batches, at the end
    learn_encodings: bool = False  # scales, offsets and levels too, of weights and values that flow (LSQ)
    task_loss: float = 1.0  # weight of the task's loss beside `distill`; 0 leaves it out
    distill: tuple[Term, ...] = ()
    plugins: tuple[Plugin, ...] = ()  # what is done beside: GroupLasso, Gradual, a class of yours
    save_teacher: bool = False  # ask the teachers once, and read their outputs afterwards; not with random changes
    shard: bool = False  # of several processes each holds a part of the model (FSDP2); then no checkpoints are kept
    seed: int = 0

    def __post_init__(self) -> None:
        for wrong, what, remedy in (
            (self.epochs < 1, f"{self.epochs} epochs", "train for at least one"),
            (not self.lr > 0, f"a learning rate of {self.lr}", "give a positive one, such as 1e-4"),
            (not 0 <= self.warmup < 1, f"a warm-up of {self.warmup}", "give a fraction of all steps, under 1"),
            (self.clip is not None and not self.clip > 0, f"gradients clipped to {self.clip}", "give a positive norm"),
            (self.accumulate < 1, f"steps of {self.accumulate} batches", "give at least one"),
            (self.ema is not None and not 0 < self.ema < 1, f"a moving average of {self.ema}", "give a decay as 0.999"),
            (self.patience is not None and self.patience < 1, f"a patience of {self.patience}", "give at least one"),
            (self.learn_encodings and self.shard, "encodings learnt in shards", "leave one of both out"),
            (bool(self.plugins) and self.shard, "plug-ins over shards", "leave one of both out"),
            (self.task_loss == 0 and not self.distill, "no loss at all", "give distill= or task_loss=1"),
        ):
            if wrong:
                raise RecipeError(f"Finetune with {what}", next=remedy)
        for name, kinds in (("schedule", Schedule), ("clip_norm", Norm), ("precision", Precision)):
            value, known = getattr(self, name), get_args(kinds)
            if value not in known:
                raise RecipeError(f"Finetune with {name}={value!r}", next=nearest(str(value), known))

    @property
    def needs(self) -> Mapping[str, str]:
        stops = {} if self.patience is None else {"validate": "give validate= to stop by, or leave patience= out"}
        loss = {} if self.distill else {"loss": "give loss=, or distill= in Finetune"}
        return {"train": "give train= and loss=", **loss, **stops}

    def rehearse(self, run: Run) -> None:
        if run.lessons is not None:
            run.lessons.rehearse(run, self)

    def apply(self, run: Run) -> None:
        if run.lessons is None:
            raise InputError("this recipe trains, and the task has nothing to train with", next="give train= and loss=")
        run.lessons.teach(run, self)
