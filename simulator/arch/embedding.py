"""The two ends of a model: token embedding, and output head with its loss."""

from __future__ import annotations

from simulator.arch.linear import linear, norm, pointwise
from simulator.arch.operations import (
    DTYPE_BYTES,
    Collective,
    Gemm,
    Lookup,
    Number,
    Operation,
    Pointwise,
    Saved,
    Weight,
    Work,
)
from simulator.arch.shard import Kernels, Shard, is_split, padded_vocab
from simulator.spec.model import ModelSpec


def embedding(model: ModelSpec, *, shard: Shard, kernels: Kernels) -> list[Operation]:
    """Vocabulary-parallel lookup, what is added to it, embedding norm and dropout."""
    spec, size, width = model.embedding, kernels.element_bytes, model.hidden
    vocab = padded_vocab(spec.vocab, shard.vocab_multiple, shard.tp)
    rows = Lookup(rows=shard.tokens, width_bytes=spec.width * size)
    tables = [Weight(name="embedding.tokens", elements=vocab * spec.width / shard.tp)]
    extra = spec.learned_positions + spec.token_types
    if spec.learned_positions:
        tables.append(Weight(name="embedding.positions", elements=spec.learned_positions * width))
    if spec.token_types:
        tables.append(Weight(name="embedding.token_types", elements=spec.token_types * spec.width))
    additions = int(spec.learned_positions > 0) + int(spec.token_types > 0)
    elements = shard.tokens * width
    forward: list[Work] = [rows]
    if additions:
        forward.append(Pointwise(bytes=elements * 3 * size * additions, kernels=additions, kernel="add"))
    operations = [
        Operation(
            name="embedding",
            forward=(*forward, *_embedding_border(elements * size, shard)),
            input_grad=_embedding_border_back(elements * size, shard),
            weight_grad=(rows, *((Pointwise(bytes=elements * size * additions, kernel="row_sum"),)
                                 if extra else ())),
            weights=tuple(tables),
            saves=(Saved(name="embedding.token_ids", bytes=shard.tokens * 8.0, statistic=True),),
        )
    ]
    if spec.width != width:
        saves = _narrow("embedding", shard.tokens, spec.width, kernels)
        operations.append(linear("embedding.project", tokens=shard.tokens, inputs=spec.width, outputs=width,
                                 kernels=kernels, saves=saves))  # fmt: skip
    after = not model.stacks[0].final_norm
    if spec.norm:
        operations.append(_norm("embedding.norm", model, shard.split_tokens, width, kernels, output_saved=after))
    elif after and any(layer.norms for layer, _ in model.stacks[0].runs):
        # Norms follow their block: the first layer reads this tensor, and counts the outputs of its own norms.
        kept = Saved(name="embedding.output", bytes=shard.split_tokens * width * size)
        operations.append(Operation(name="embedding.output", saves=(kept,)))
    if kernels.dropout:
        mask = (Saved(name="embedding.dropout_mask", bytes=shard.split_tokens * width * 1.0),)
        operations.append(pointwise("embedding.dropout", elements=shard.split_tokens * width, forward=2 * size + 1,
                                    backward=2 * size + 1, saves=mask))  # fmt: skip
    return operations


def _norm(
    name: str, model: ModelSpec, tokens: Number, width: Number, kernels: Kernels, *, output_saved: bool = True
) -> Operation:  # fmt: skip
    """A norm outside the layers, which no recompute option names."""
    return norm(name, tokens=tokens, width=width, kernels=kernels, layernorm=model.norm == "layernorm",
                bias=model.norm_bias, output_saved=output_saved, modules=())  # fmt: skip


def _narrow(name: str, tokens: Number, width: int, kernels: Kernels) -> tuple[Saved, ...]:
    """The narrow side of a token table with a projection (OPT-350M)."""
    return (Saved(name=f"{name}.narrow", bytes=tokens * width * kernels.element_bytes),)


def _embedding_border(full_bytes: Number, shard: Shard) -> tuple[Work, ...]:
    """A vocabulary-parallel lookup leaves partial sums: all-reduce, or reduce-scatter under sequence parallelism."""
    if not is_split(shard.tp):
        return ()
    kind = "reduce_scatter" if shard.sequence_parallel else "all_reduce"
    return (Collective(kind=kind, axis="tp", bytes=full_bytes),)  # type: ignore[arg-type]


def _embedding_border_back(full_bytes: Number, shard: Shard) -> tuple[Work, ...]:
    if not is_split(shard.tp) or not shard.sequence_parallel:
        return ()
    return (Collective(kind="all_gather", axis="tp", bytes=full_bytes),)


def final_norm(model: ModelSpec, *, shard: Shard, kernels: Kernels, name: str = "final_norm") -> Operation:
    """The norm after a stack's last layer."""
    return _norm(name, model, shard.split_tokens, model.hidden, kernels)


def head(model: ModelSpec, *, shard: Shard, kernels: Kernels) -> list[Operation]:
    """Output projection over the local vocabulary, and the vocabulary-parallel cross entropy.

    A tied projection shares the embedding's table: it adds no parameters here (a pipeline whose last stage holds no
    embedding keeps a copy, which the lowering adds).
    """
    spec, width, tokens = model.head, model.hidden, shard.tokens * kernels.logits_fraction
    vocab = padded_vocab(model.embedding.vocab, shard.vocab_multiple, shard.tp) / shard.tp
    operations = [
        *_kept_input(model, tokens, kernels),
        *_transform(model, tokens=tokens, kernels=kernels),
        *_gather_for_logits(tokens * width * kernels.element_bytes, shard, kernels),
    ]
    dtype = kernels.activation_dtype
    inner = model.embedding.width
    if inner != width:
        operations.append(linear("head.project", tokens=tokens, inputs=width, outputs=inner, kernels=kernels))
    weights: tuple[Weight, ...] = ()
    if not spec.tied:
        weights = (Weight(name="head.weight", elements=vocab * inner),)
    if spec.bias:
        weights = (*weights, Weight(name="head.bias", elements=vocab))
    operations.append(
        Operation(
            name="head.logits",
            forward=(Gemm(m=tokens, n=vocab, k=inner, dtype=dtype),),
            input_grad=(Gemm(m=tokens, n=inner, k=vocab, dtype=dtype),),
            weight_grad=(Gemm(m=vocab, n=inner, k=tokens, dtype=dtype),),
            weights=weights,
            saves=_narrow("head", tokens, inner, kernels) if inner != width else (),
        )
    )
    logits = tokens * vocab
    if not kernels.parallel_cross_entropy:
        logits = logits * shard.tp
        operations += _gather_logits(logits * kernels.element_bytes, shard)
    return [*operations, cross_entropy(logits, tokens, shard, kernels), *_pooler(model, shard, kernels)]


def _gather_logits(full_bytes: Number, shard: Shard) -> list[Operation]:
    """Every tp rank receives the logits of the whole vocabulary; backward keeps its own slice.

    What arrives rank after rank is joined along the vocabulary, and the slice cut from it: copies that read and write
    (torch.distributed._functional_collectives all_gather_tensor with gather_dim > 0; Megatron-LM mappings.py
    _gather_along_last_dim, _split_along_last_dim).
    """
    if not is_split(shard.tp):
        return []
    gather = Collective(kind="all_gather", axis="tp", bytes=full_bytes)
    join, cut = (Pointwise(bytes=2 * moved, kernel="copy") for moved in (full_bytes, full_bytes / shard.tp))
    return [Operation(name="head.gather", forward=(gather, join), input_grad=(cut,))]


def _kept_input(model: ModelSpec, tokens: Number, kernels: Kernels) -> list[Operation]:
    """Without any norm before it (the 2017 mixtures) the projection keeps its own input."""
    last = model.stacks[-1]
    if last.final_norm or last.layer(last.layers - 1).norms:
        return []
    kept = Saved(name="head.input", bytes=tokens * model.hidden * kernels.element_bytes)
    return [Operation(name="head.input", saves=(kept,))]


def cross_entropy(logits: Number, tokens: Number, shard: Shard, kernels: Kernels) -> Operation:
    """Softmax cross entropy over the local part of the vocabulary.

    Unfused, as in Megatron-LM `vocab_parallel_cross_entropy`: cast to fp32, max, subtract, exponentiate, sum, divide
    (read and write each), and a backward that scales and casts the saved softmax: about 34 and 18 B per logit at
    fp32. Fused, each direction reads and writes the logits about once. Saves the softmax in the loss's dtype; a loss
    written in tensor operations over the whole vocabulary also holds the logits and their cast. Three small
    all-reduces over tp carry the row maxima, target logits and sums of a vocabulary-parallel loss.

    A compiler keeps the logits in the activations' dtype instead and computes the softmax again inside the kernel of
    its gradient (XLA and TorchInductor fuse casts and pointwise chains into their consumers).

    Beside the softmax stand the gradient in the logits' dtype (the softmax itself is turned into it), unfused the
    logits and their cast in forward; a loss over the whole vocabulary makes the gradients of negative log-likelihood
    and of log-softmax, each in the loss's dtype (torch.nn.functional.cross_entropy).
    """
    wide = DTYPE_BYTES[kernels.logits_dtype]
    size = kernels.element_bytes
    fused = kernels.fused_cross_entropy or kernels.compiled
    forward = size + 2 * wide if fused else size + wide * 8
    backward = size + wide if fused else size + wide * 4
    parallel = kernels.parallel_cross_entropy and is_split(shard.tp)
    row = (Collective(kind="all_reduce", axis="tp", bytes=tokens * 4.0),) * 3 if parallel else ()
    whole = not (fused or kernels.parallel_cross_entropy)
    held = (size + wide if wide > size else size) if whole else 0.0
    beside = 2 * wide if whole else size if fused else size + wide
    return Operation(
        name="loss",
        forward=(Pointwise(bytes=logits * forward, flops=logits * 5, kernels=2 if fused else 8,
                           kernel="cross_entropy"), *row),
        input_grad=(Pointwise(bytes=logits * backward, kernels=1 if fused else 3, kernel="cross_entropy_grad"),),
        saves=(Saved(name="loss.softmax", bytes=logits * (size if kernels.compiled else wide),
                     beside_bytes=logits * beside),
               *((Saved(name="loss.logits", bytes=logits * held, beside_bytes=0.0),) if held else ()),
               Saved(name="loss.targets", bytes=tokens * 8.0, statistic=True)),
    )


def _gather_for_logits(full_bytes: Number, shard: Shard, kernels: Kernels) -> list[Operation]:
    """The border before the vocabulary projection, as before any column-parallel layer."""
    if not is_split(shard.tp):
        return []
    beside = "weight_grad" if kernels.overlap_tp_grad else ""
    if not shard.sequence_parallel:
        reduce = (Collective(kind="all_reduce", axis="tp", bytes=full_bytes, hides=beside),)
        return [Operation(name="head.enter", input_grad=reduce)]
    gather = Collective(kind="all_gather", axis="tp", bytes=full_bytes)
    scatter = Collective(kind="reduce_scatter", axis="tp", bytes=full_bytes, hides=beside)
    return [Operation(name="head.enter", forward=(gather,), input_grad=(gather, scatter))]


def _transform(model: ModelSpec, *, tokens: Number, kernels: Kernels) -> list[Operation]:
    """BERT's masked-LM transform: dense, GELU, norm."""
    if not model.head.transform:
        return []
    width, size = model.hidden, kernels.element_bytes
    return [
        linear("head.transform", tokens=tokens, inputs=width, outputs=width, kernels=kernels, bias_elements=width),
        pointwise("head.transform.activation", elements=tokens * width, forward=2 * size, backward=3 * size,
                  kernel="gelu", saves=(Saved(name="head.transform.output", bytes=tokens * width * size),)),
        _norm("head.transform.norm", model, tokens, width, kernels),
    ]  # fmt: skip


def _pooler(model: ModelSpec, shard: Shard, kernels: Kernels) -> list[Operation]:
    """BERT's pooler over the first token and its classifier: one row per sequence."""
    if not model.head.pooler:
        return []
    rows, width = shard.micro_batch, model.hidden
    pool = linear("head.pooler", tokens=rows, inputs=width, outputs=width, kernels=kernels, bias_elements=width,
                  saves=(Saved(name="head.pooler.output", bytes=rows * width * kernels.element_bytes),))
    classes = model.head.pooler_classes
    if not classes:
        return [pool]
    return [pool, linear("head.classifier", tokens=rows, inputs=width, outputs=classes, kernels=kernels,
                         bias_elements=classes)]  # fmt: skip
