"""A module as an ONNX file, its encoded tensors as real integer and half-precision initializers.

`torch.onnx` translates the captured graph; the decoding of tensors and the projection of values arrive as nodes of a
domain of their own, which `lilliput.exporters.lower` turns into standard operators that runtimes fuse.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import onnx.defs
import onnx_ir as ir
import torch
from onnxscript.values import Opset
from torch import nn
from torch.export import ExportedProgram

from lilliput.encodings import Encoding
from lilliput.errors import ExportError, raise_own, reason
from lilliput.exporters import bags, origins
from lilliput.exporters.decomposed import decomposed_where_needed
from lilliput.exporters.low_rank import expand as expand_low_rank
from lilliput.exporters.lower import PACKED_OPSET, lower
from lilliput.exporters.nbits import expand as expand_packed
from lilliput.exporters.nodes import DOMAIN
from lilliput.exporters.recurrent import expand
from lilliput.exporters.simplify import simplify
from lilliput.exporters.simulated import expand as expand_simulated
from lilliput.exporters.translators import translators_kept
from lilliput.external import SMALL, Held, beside, write
from lilliput.model.views.inputs import Inputs
from lilliput.model.views.program import OUTPUTS, program, quiet
from lilliput.model.views.view import BAG

_OPERATORS = {  # op in torch -> the node that stands for it until it is lowered, its inputs and attributes
    "decode_int": ("DecodeInt", ("codes", "scale", "offset", "minimum"), ("axis", "group")),
    "decode_float": ("DecodeFloat", ("codes",), ()),
    "decode_exponent": ("DecodeExponent", ("codes",), ()),
    "decode_levels": ("DecodeLevels", ("codes", "levels"), ("axis", "group")),
    "decode_grid": ("DecodeGrid", ("codes", "scale"), ("table", "axis", "group")),
    "decode_low_rank": ("DecodeLowRank", ("left", "right"), ()),
    "decode_tiles": ("DecodeTiles", ("codes", "scale", "choice"), ("tables", "axis", "group", "channels")),
    "project_int": ("ProjectInt", ("x", "scale", "offset"), ("low", "high")),
    "project_int_dynamic": ("ProjectIntDynamic", ("x",), ("bits",)),
    "project_grid": ("ProjectGrid", ("x", "scale"), ("levels",)),
    "project_grid_dynamic": ("ProjectGridDynamic", ("x",), ("tables", "choices", "axis", "group")),
}
_LAID_OUT = (torch.ops.aten.view.default, torch.ops.aten.reshape.default)
_TURNED = (torch.ops.aten.transpose.int, torch.ops.aten.permute.default)
_SMOOTHED = ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
_TABLES = ("table", "tables", "levels")  # attributes that are lists of numbers
_RECURRENT = {  # op in torch -> its node until it is written out, and how many outputs it has
    "lstm": ("LSTM", 3),
    "gru": ("GRU", 2),
    "rnn_tanh": ("RNNTanh", 2),
    "rnn_relu": ("RNNRelu", 2),
}
_TENSOR = [f"tensor({kind})" for kind in ("float", "float16", "bfloat16", "double", "int8", "uint8", "int16")]


@functools.cache
def _translations() -> dict[Any, Any]:
    """How torch's exporter is to write our ops, and recurrent layers: each as one node of our own domain."""
    ours = {getattr(torch.ops.lilliput, op).default: _translation(*described) for op, described in _OPERATORS.items()}
    layers = {getattr(torch.ops.lilliput, op).default: _recurrent(*of) for op, of in _RECURRENT.items()}
    return {**ours, **layers, getattr(torch.ops.lilliput, BAG).default: bags.translate}


def _recurrent(name: str, outputs: int) -> Any:
    told = ("has_biases", "num_layers", "bidirectional", "batch_first")
    schema = onnx.defs.OpSchema
    onnx.defs.register_schema(
        schema(
            name,
            DOMAIN,
            1,
            inputs=[schema.FormalParameter("tensors", "T", param_option=schema.FormalParameterOption.Variadic)],
            outputs=[schema.FormalParameter(f"out{i}", "T") for i in range(outputs)],
            type_constraints=[("T", _TENSOR, "")],
            attributes=[schema.Attribute(given, schema.AttrType.INT, "") for given in told],
        )
    )
    node = getattr(Opset(DOMAIN, 1), name)

    def translate(x: Any, hx: Any, params: Any, *numbers: int) -> Any:
        return node(x, *hx, *params, **dict(zip(told, map(int, numbers), strict=True)))

    return translate


def _translation(name: str, inputs: tuple[str, ...], attributes: tuple[str, ...]) -> Any:
    schema = onnx.defs.OpSchema
    optional = dict.fromkeys(("offset", "minimum"), schema.FormalParameterOption.Optional)
    onnx.defs.register_schema(
        schema(
            name,
            DOMAIN,
            1,
            inputs=[
                schema.FormalParameter(
                    given, f"T{i}", param_option=optional.get(given, schema.FormalParameterOption.Single)
                )
                for i, given in enumerate(inputs)
            ],
            outputs=[schema.FormalParameter("out", "TOut")],
            type_constraints=[(f"T{i}", _TENSOR, "") for i in range(len(inputs))] + [("TOut", _TENSOR, "")],
            attributes=[
                schema.Attribute(given, schema.AttrType.FLOATS if given in _TABLES else schema.AttrType.INT, "")
                for given in attributes
            ],
        )
    )
    node = getattr(Opset(DOMAIN, 1), name)

    def translate(*args: Any) -> Any:
        return node(*args[: len(inputs)], **dict(zip(attributes, args[len(inputs) :], strict=True)))

    return translate


def _copying(captured: ExportedProgram) -> ExportedProgram:
    """The program with a copy before what lays transposed elements out anew.

    Attention gives its result in an order of memory that such a view relies on, and torch's exporter writes attention
    out in another (seen in T5 and Swin). In the file a copy is nothing.
    """
    for node in captured.graph.nodes:
        if node.target in _LAID_OUT and node.args[0].target in _TURNED:
            with captured.graph.inserting_before(node):
                given = {"memory_format": torch.contiguous_format}
                copy = captured.graph.call_function(torch.ops.aten.clone.default, (node.args[0],), given)
            copy.meta = dict(node.args[0].meta, val=node.args[0].meta["val"].contiguous())
            node.replace_input_with(node.args[0], copy)
    captured.graph_module.recompile()
    return captured


def export(
    path: str | Path,
    model: nn.Module,
    example: Inputs,
    dynamic: Mapping[str | int, Mapping[int, str]],
    opset: int = 20,
    *,
    integer_bias: bool = True,
    unsigned: bool = True,
    packed: Collection[int] = (),
) -> None:
    """Write `model` (in eval mode) to `path`; the named axes stay open, and no paths of sources are inside.

    Layers whose weights have as many bits as `packed` says are multiplied by packed codes, which ONNX Runtime alone
    does. The opset is raised where codes of four bits and fewer need it to be stored two to a byte.
    """
    opset = max(opset, PACKED_OPSET) if _has_four_bits(model) else opset
    try:
        with quiet(), translators_kept(), decomposed_where_needed():
            captured = _copying(program(model, example, dynamic))
            places = captured.graph_module.meta[OUTPUTS]
            _refuse_wrong(captured)
            exported = torch.onnx.export(
                captured,
                dynamo=True,
                opset_version=opset,
                custom_translation_table=_translations(),
                optimize=False,
                verbose=False,
            )
            assert exported is not None
            graph = exported.model
            origins.begin(graph, model)
            simplify(graph)
    except ExportError:
        raise
    except Exception as error:  # both steps raise whatever the model's code and the translators raise
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        raise_own(first)
        raise ExportError(
            "the model cannot be exported to ONNX",
            why=reason(first),
            next="see which part with lilliput.model.views.capture, or keep the .lil file",
        ) from error
    expand(graph)
    expand_simulated(graph)
    expand_low_rank(graph)
    expand_packed(graph, packed)
    lower(graph, integer_bias=integer_bias, unsigned=unsigned)
    _name_axes(graph, example, dynamic)
    _name_outputs(graph.graph, places)
    _strip(graph)
    _write(graph, Path(path))
    origins.write(graph, path)


def _write(model: ir.Model, path: Path) -> None:
    """Write a graph whose tensors lie beside it where they are large: from where they are, and copied nowhere else."""
    held = {name: x for name, value in model.graph.initializers.items() if (x := value.const_value) is not None}
    large = {name: x for name, x in held.items() if x.nbytes > SMALL} if beside(x.nbytes for x in held.values()) else {}
    for name, x in large.items():
        elsewhere = ir.ExternalTensor(path.name, 0, x.nbytes, x.dtype, shape=ir.Shape(x.shape.numpy()), name=name)
        model.graph.initializers[name].const_value = elsewhere  # its place is told when it is written there
    write(
        path, ir.to_proto(model), {name: Held(x.nbytes, functools.partial(_elements, x)) for name, x in large.items()}
    )


def _elements(x: ir.TensorProtocol, file: IO[bytes]) -> None:
    """Write the elements of a tensor, from its own memory where it can."""
    write_to = getattr(x, "tofile", None)
    if write_to is None:
        file.write(x.tobytes())
    else:
        write_to(file)


def _refuse_wrong(captured: ExportedProgram) -> None:
    """Refuse what torch's exporter is known to write as something else (found by comparing operators one by one)."""
    for node in captured.graph.nodes:
        name = getattr(node.target, "_opname", "")
        if name in _SMOOTHED and len(node.args) > 2 and node.args[2]:
            raise ExportError(
                "images resized with antialias=True and align_corners=True",
                where=node.name,
                why="runtimes weigh the pixels of such a filter otherwise than torch",
                next="resize with align_corners=False, where they agree",
            )
        if name == "batch_norm" and len(node.args) > 5 and node.args[5] and node.args[3] is not None:
            raise ExportError(
                "a batch norm in training mode that holds statistics, and takes those of the batch",
                where=node.name,
                why="torch's exporter writes it with the statistics that it holds",
                next="leave it in eval mode, or compute mean and variance of the batch in forward",
            )


def _has_four_bits(model: nn.Module) -> bool:
    held = (getattr(module, "encoding", None) for module in model.modules())
    return any(isinstance(encoding, Encoding) and (encoding.code_bits or 8) <= 4 for encoding in held)


def _name_axes(model: ir.Model, example: Inputs, dynamic: Mapping[str | int, Mapping[int, str]]) -> None:
    """Give open axes the names that the user gave them, wherever torch's own symbols for them occur."""
    names: dict[str, str] = {}
    for value, key in zip(model.graph.inputs, example.tensors(), strict=True):
        for axis, name in dynamic.get(key, {}).items():
            if value.shape is not None and isinstance(value.shape[axis], ir.SymbolicDim):
                names[str(value.shape[axis])] = name
    for value in model.graph.outputs:  # an output that an operator of ours gave is of no known type
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape(
                [names.get(str(dim), str(dim)) if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape]
            )


def _name_outputs(graph: ir.Graph, places: Sequence[str]) -> None:
    """Give outputs the names that they have in the module's answer; what is an input as well keeps that name."""
    given = {*graph.inputs, *graph.initializers.values()}
    taken = {value.name: value for node in graph for value in node.outputs} | {value.name: value for value in given}
    named = set[ir.Value]()
    for value, place in zip(graph.outputs, places, strict=True):
        if value in given or value in named:
            continue
        taken.pop(value.name, None)
        name = place or "output"
        other = taken.get(name)
        if other in given or other in named:
            name = f"{name}_output"
        elif other is not None:
            other.name = f"{name}_within"
            taken[other.name] = other
        value.name = name
        taken[name] = value
        named.add(value)


def _strip(model: ir.Model) -> None:
    """Remove what tells where and how the model was made, and inferred shapes, which lead to slower fusions."""
    model.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    model.producer_name, model.producer_version = "lilliput", None
    model.graph.metadata_props.clear()
    kept = {*model.graph.inputs, *model.graph.outputs}
    for value in (*kept, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in kept:
                value.shape, value.type = None, None
