"""Which rule each operator has."""

from __future__ import annotations

from lilliput.model.surgery.coupling import rules_elements as elements
from lilliput.model.surgery.coupling import rules_layouts as layouts
from lilliput.model.surgery.coupling import rules_products as products
from lilliput.model.surgery.coupling.flow import Rule
from lilliput.model.views.view import BAG, CONVOLUTIONS, RECURRENT


def _rules() -> dict[str, Rule]:
    by_rule: dict[Rule, str] = {
        elements.same: "dropout feature_dropout alpha_dropout contiguous clone detach alias to _to_copy mark identity"
        " type_as lift_fresh_copy detach_copy",
        elements.pointwise: "pointwise where masked_fill copy maximum minimum lerp addcmul addcdiv fill clamp hardtanh"
        " bitwise_and bitwise_or bitwise_not __and__ __or__ __xor__ logical_not logical_and logical_or ge gt le lt eq"
        " ne rrelu",
        elements.made: "zeros ones full empty arange zeros_like ones_like full_like empty_like new_zeros new_ones"
        " new_full new_empty scalar_tensor rand randn rand_like randn_like tril_indices linspace eye",
        elements.prelu: "prelu _prelu_kernel",
        elements.glu: "glu",
        products.embedding: "embedding",
        products.bag: BAG,
        elements.batch_norm: "batch_norm instance_norm",
        elements.layer_norm: "layer_norm rms_norm",
        elements.group_norm: "group_norm",
        elements.softmax: "softmax log_softmax _softmax _log_softmax softmin",
        elements.reduced: "mean sum var std norm linalg_vector_norm amax amin prod logsumexp all any argmax argmin"
        " var_mean",
        elements.along: "cumsum cumprod flip roll triu tril diff",
        elements.pad: "pad constant_pad_nd",
        elements.pixel_shuffle: "pixel_shuffle pixel_unshuffle",
        elements.channel_shuffle: "channel_shuffle",
        elements.indexed: "index",
        elements.gathered: "gather index_select take_along_dim",
        elements.added_to: "index_add scatter scatter_add scatter_reduce index_copy index_reduce",
        products.linear: "linear",
        products.bilinear: "bilinear",
        products.convolution: " ".join(CONVOLUTIONS),
        products.matmul: "matmul mm bmm mv dot",
        products.addmm: "addmm baddbmm",
        products.grouped: "grouped_mm grouped_mm_fallback _grouped_mm",
        products.einsum: "einsum",
        products.attention: "scaled_dot_product_attention",
        products.recurrent: " ".join(RECURRENT),
        products.cell: "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
        layouts.laid_out: "view reshape flatten unflatten squeeze unsqueeze _unsafe_view view_as reshape_as",
        layouts.permuted: "permute transpose t swapaxes swapdims numpy_T mT",
        layouts.expanded: "expand expand_as broadcast_to",
        layouts.repeated: "repeat tile repeat_interleave",
        layouts.pieces: "split split_with_sizes chunk tensor_split unbind unsafe_split unsafe_chunk",
        layouts.sliced: "slice narrow",
        layouts.select: "select",
        layouts.cat: "cat concat concatenate",
        layouts.stack: "stack",
    }
    found = {name: rule for rule, names in by_rule.items() for name in names.split()}
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest"):
        found |= {f"{kind}{n}d": elements.space(n) for n in (1, 2, 3)}
    found |= {f"max_pool{n}d_with_indices": elements.space(n) for n in (1, 2, 3)}
    found |= {f"{pad}_pad{n}d": elements.space(n) for pad in ("reflection", "replication") for n in (1, 2, 3)}
    in_space = {"upsample_linear1d": 1, "upsample_bilinear2d": 2, "upsample_bicubic2d": 2, "grid_sampler": 2}
    found |= {name: elements.space(n) for name, n in {**in_space, "upsample_trilinear3d": 3}.items()}
    return found


RULES = _rules()
