"""What the user brings: a model, inputs to calibrate with, inputs and a metric to judge with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lilliput.errors import InputError, reason
from lilliput.feeding import Batches, Source, Takes, batched, example_of, first_sample
from lilliput.feeding.pipeline import Pipeline, Prepared, open_lengths, prepared
from lilliput.feeding.rows import Collate
from lilliput.feeding.source import SAMPLES
from lilliput.importers import open_axes
from lilliput.model.edits.copies import check_plain
from lilliput.model.views.inputs import Dynamic, Inputs, dynamic_axes
from lilliput.pretrained import fields_of


@dataclass(frozen=True, eq=False)
class Task:
    """A model and what is needed to make it smaller without harm.

    Batches are what loaders give: tensors, arrays, tuples (x, y), dicts, with lists and dicts inside. What `forward`
    takes of them are the inputs; labels, texts and what else lies there is left out, and told in the report. A
    dataset gives samples: they become batches by `collate`, or as torch does it. What shuffles, is read once, or never
    ends is read as far as `samples` of it, which are kept: the report says so.

    `output` says what an answer is, and so what is compared of it: "classes" [samples, classes, …] (the same largest
    one), "values" (their error), "embedding" [samples, …, width] (cosine and ratio of norms) or "tokens", logits
    [samples, tokens, vocabulary] (the same word, and KL divergence). One word is for the output that metrics look at:
    "logits", or else the first; {"boxes": "values", "scores": "classes"} names each. What nobody says is values.
    """

    model: nn.Module  # or a pipeline of transformers, whose network is meant, and whose samples it prepares
    example: Any = None  # one input, as latency is measured with; None: the first sample of `calibrate`
    calibrate: Any = None  # batches or samples that the model will meet, to find ranges with
    evaluate: Any = None  # others, to judge by how far outputs agree with the original's
    clusters: Sequence[Any] | None = None  # for each sample of `evaluate`, its source (photograph, speaker, document)
    metric: Callable[[Any], Any] | None = None  # metric(model) -> one score a sample; tried before any work
    dynamic: Dynamic | None = None  # axes that vary, {input: {axis: name}}; None: axis 0 of every input is "batch"
    train: Any = None  # batches or samples, whatever `loss` takes; shuffled by torch's random numbers if at all
    loss: Callable[[Any, Any], Tensor] | None = None  # loss(model, batch) -> the mean over the batch
    validate: Any = None  # as `train`, to stop training by; never those to judge by
    teacher: nn.Module | Sequence[nn.Module] | None = None  # for distillation; None: the model as it is given
    name: str = ""
    assets: Mapping[str, str | Path | bytes] | None = None  # files to travel in the .lil: name there -> path, or bytes
    baseline: nn.Module | None = None  # what the result is compared with; None: the model as it is given
    collate: Collate | None = None  # from a list of samples to a batch, for datasets and lists of samples
    samples: int = SAMPLES  # that are kept of what cannot be read again: loaders that shuffle, generators
    output: str | Mapping[str, str] | None = None  # what an answer is, or {place: what}; None: as the metric says

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | nn.Module,
        task: str,
        data: Any,
        *,
        evaluate: Any = None,
        processor: Any = None,
        length: int | None = None,
        samples: int | None = None,
    ) -> Task:
        """The task of a folder of Hugging Face, or of a network of transformers, by the name of what it does.

        `task` is a name that pipelines know: "text-classification", "token-classification", "fill-mask",
        "feature-extraction", "sentence-similarity", "text-generation", "image-classification", "image-segmentation",
        "audio-classification", "automatic-speech-recognition"; or "text-generation-with-past", of a decoder that takes
        and gives the keys and values of what was read. `data` is a file (.csv, .tsv, .json, .jsonl, .txt), a folder of
        images or sounds (those within it are labels), a dataset, a table, or a list of samples, (sample, label) or
        dicts. Half of it calibrates, at most, and the rest judges, or `evaluate` does: as many as are enough for the
        task, or `samples`; what is not read is told in the report. Where samples have labels, they are the metric. The
        folder's own tokenizer or `processor` makes inputs; texts are cut after `length` tokens, or 512. Nothing is
        downloaded, and no code of a folder is run.

        Raises InputError for a name or label that is not known, what is on no disk here, a folder without the weights
        that the task needs, and data without samples.

        >>> import tempfile, tokenizers, transformers
        >>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "good": 1, "bad": 2}, "[UNK]"))
        >>> words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        >>> sizes = dict(vocab_size=3, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        >>> net = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
        >>> tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[UNK]")
        >>> rows = [("good good", 1), ("bad", 0), ("good", 1), ("bad bad bad", 0)]
        >>> task = Task.from_pretrained(net, "text-classification", rows, processor=tokenizer)
        >>> task.metric.name, task.dynamic["input_ids"]
        ('top1', {0: 'batch', 1: 'sequence'})
        """
        return cls(**fields_of(model, task, data, evaluate, processor, length, samples))


def read_assets(assets: Mapping[str, str | Path | bytes] | None) -> dict[str, bytes]:
    """The files that are to travel with the model, read."""
    read: dict[str, bytes] = {}
    for name, given in (assets or {}).items():
        try:
            read[name] = given if isinstance(given, bytes) else Path(given).read_bytes()
        except (OSError, TypeError) as error:
            raise InputError("cannot be read", where=f"assets[{name!r}]", why=reason(error)) from error
    return read


def of_pipeline(task: Task) -> Task:
    """The task of the network of a pipeline, its samples prepared as the pipeline does; any other task as it is."""
    pipeline: Any = task.model
    if isinstance(pipeline, nn.Module) or not isinstance(pipeline, Pipeline):
        return task
    given = {name: prepared(pipeline, getattr(task, name)) for name in ("calibrate", "evaluate", "train", "validate")}
    lengths = None
    if isinstance(given["calibrate"], Prepared) and isinstance(task.calibrate[0], str):
        inputs, _ = Takes.of(pipeline.model.forward).inputs(next(iter(given["calibrate"])), "calibrate[0]")
        lengths = open_lengths(inputs.tensors())
    return replace(task, model=pipeline.model, dynamic=task.dynamic or lengths, **given)


def fed(task: Task) -> Task:
    """The task with what it gives to calibrate and to judge with read as inputs of its model: see `feeding`."""
    _check_model(task)
    takes = Takes.of(task.model.forward)

    def source(name: str) -> Source | None:
        given = getattr(task, name)
        return None if given is None else Source.of(batched(given, task.collate), name, takes, task.samples)

    return replace(task, calibrate=source("calibrate"), evaluate=source("evaluate"))


def checked_example(task: Task) -> tuple[Inputs, dict[str | int, dict[int, str]]]:
    """The task's example and its open axes, as far as they can be judged without running the model."""
    _check_model(task)
    _check_dynamic(task.dynamic)
    dynamic = open_axes(task.model) if task.dynamic is None else task.dynamic
    if task.example is not None:
        example = example_of(task.example, Takes.of(task.model.forward))
    elif task.calibrate is not None:
        example = first_sample(fed(task).calibrate or (), "calibrate", dynamic)
    else:
        raise InputError("a task needs an example", next="give example= or calibrate=")
    return example, dynamic_axes(example, _of(example, dynamic) if task.dynamic is None else dynamic)


def _of(example: Inputs, dynamic: Dynamic | None) -> Dynamic | None:
    """What a model's own file says of inputs by position and by name, for those that are given."""
    given = example.tensors()
    return None if dynamic is None else {key: axes for key, axes in dynamic.items() if key in given}


def _check_model(task: Task) -> None:
    if not isinstance(task.model, nn.Module):
        raise InputError(f"the model is a {type(task.model).__name__}", next="give a torch.nn.Module")
    check_plain(task.model)
    if type(task.samples) is not int or task.samples < 1:
        raise InputError(f"is {task.samples!r}", where="samples", next="give a whole number from 1 on")


def _check_dynamic(dynamic: Any) -> None:
    sound = dynamic is None or (
        isinstance(dynamic, Mapping)
        and all(isinstance(axes, Mapping) for axes in dynamic.values())
        and all(type(axis) is int and axis >= 0 for axes in dynamic.values() for axis in axes)
    )
    if not sound:
        raise InputError(f"is {dynamic!r}", where="dynamic", next='write {input: {axis: name}}, as {0: {0: "batch"}}')


def check_clusters(clusters: Sequence[Any] | None, evaluate: Batches | None) -> None:
    """There is one cluster label for each sample of `evaluate`, if there are any."""
    if clusters is None:
        return
    if not isinstance(clusters, Sized):
        raise InputError(
            f"is a {type(clusters).__name__}", where="clusters", next="give a list of labels, one a sample"
        )
    if evaluate is None:
        raise InputError("labels for no samples", where="clusters", next="give the samples as evaluate=")
    if len(clusters) != evaluate.samples:
        raise InputError(
            f"{len(clusters)} labels for {evaluate.samples} samples",
            where="clusters",
            next="give one a sample of evaluate=",
        )
