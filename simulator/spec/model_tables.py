"""The tables of a model's TOML file, as a person writes them; `model_file` turns them into a `ModelSpec`.

Dimensions are said once and patterns as patterns (experts in every other layer, five local layers to one full).
`models/README.md` explains the format to a person who adds a model.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Size = Annotated[int, Field(gt=0, le=2**31)]
SizeOrNone = Annotated[int, Field(ge=0, le=2**31)]
"""0 says that the model has no such thing."""
Layer = Annotated[int, Field(ge=0, le=10_000)]
"""A number of layers or of one layer: patterns are written out layer by layer, so it is bounded."""
ExpertCount = Annotated[int, Field(gt=0, le=1_000_000)]
Activation = Literal["relu", "relu2", "gelu", "silu"]
LayerKind = Literal["local", "full"]

_SCALES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def printed_count(text: str) -> tuple[int, float]:
    """The number a publication prints, and half a unit of its last printed digit relative to it (0: to the unit).

    >>> printed_count("174.6B")
    (174600000000, 0.000286368843069874)
    >>> printed_count("110,106,428")
    (110106428, 0.0)
    """
    body, scale = text.replace(",", "").replace("_", "").strip(), 1
    if body[-1:] in _SCALES:
        body, scale = body[:-1].strip(), _SCALES[body[-1]]
    number = Decimal(body)
    exponent = number.as_tuple().exponent
    if not number.is_finite() or number <= 0 or not isinstance(exponent, int):
        raise ValueError(text)
    value = int(number * scale)
    return value, 0.0 if scale == 1 else float(Decimal(scale) * Decimal(10) ** exponent / 2 / value)


def _count(text: str) -> str:
    try:
        printed_count(text)
    except (ArithmeticError, ValueError):
        raise ValueError(f'{text!r} is not a count; write it as printed: "174.6B", "1,571B" or "110,106,428"') from None
    return text


PrintedCount = Annotated[str, AfterValidator(_count)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Dims(_Table):
    """[dims]: the size of the whole model. An encoder-decoder says encoder_layers and decoder_layers."""

    architecture: Literal["decoder", "encoder", "encoder-decoder"]
    hidden: Size
    layers: Layer = 0
    encoder_layers: Layer = 0
    decoder_layers: Layer = 0
    seq_len: Size
    target_seq_len: SizeOrNone = 0


class Norm(_Table):
    """[norm]: its kind, and how many of full width a layer has where that is not two (three with cross-attention)."""

    kind: Literal["layernorm", "rmsnorm"]
    bias: bool | None = None
    per_layer: Annotated[int, Field(ge=0, le=8)] | None = None
    final: bool = True


class Attention(_Table):
    """[attention]: self-attention, and cross-attention of the same shape in the decoder of an encoder-decoder."""

    heads: Annotated[int, Field(gt=0, le=100_000)]
    kv_heads: Annotated[int, Field(ge=0, le=100_000)] = 0
    head_dim: Size
    value_head_dim: SizeOrNone = 0
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    qk_norm_shared: bool = True
    sinks: bool = False
    q_lora_rank: SizeOrNone = 0
    kv_lora_rank: SizeOrNone = 0
    rope_head_dim: SizeOrNone = 0
    relative_bias: Literal["none", "per-stack", "per-layer"] = "none"
    relative_bias_buckets: SizeOrNone = 0
    window: SizeOrNone = 0
    chunk: SizeOrNone = 0
    pattern: list[LayerKind] = []
    rope_when_full: bool = True


class FeedForward(_Table):
    """[feed_forward]: the dense feed-forward of the layers that have no experts."""

    hidden: Size
    activation: Activation
    gated: bool
    bias: bool = False
    parallel: bool = False


class LayerRule(_Table):
    """Which layers, counted from 0 in each stack: `layers` lists them, else first, first + every, ..."""

    every: Annotated[int, Field(gt=0, le=10_000)] = 1
    first: Layer | None = None
    layers: list[Layer] | None = None

    def covers(self, index: int) -> bool:
        """True when the rule names the layer at `index`. `first` is every - 1 when not said."""
        if self.layers is not None:
            return index in self.layers
        first = self.every - 1 if self.first is None else self.first
        return index >= first and (index - first) % self.every == 0


class Experts(LayerRule):
    """[experts]: the mixture and the rule that says which layers have it.

    With `branching` the gate has two levels and `top_k` counts at each. Size of a shared expert: `shared_hidden`, or
    `hidden` when not said.
    """

    count: ExpertCount
    top_k: ExpertCount
    hidden: Size
    activation: Activation
    gated: bool
    bias: bool = False
    clamped: bool = False
    router_bias: bool = False
    router_matrices: Size = 1
    branching: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    shared: SizeOrNone = 0
    shared_hidden: SizeOrNone = 0
    shared_gate: bool = False
    capacity_factor: Annotated[float, Field(ge=0.0)] = 0.0
    routing_group: SizeOrNone = 0
    extra_feed_forward: bool = False


class Lstm(LayerRule):
    """[lstm]: an LSTM block, and the layers that are one."""

    hidden: Size
    projection: SizeOrNone = 0


class Embedding(_Table):
    """[embedding]: the vocabulary as published, not padded; `width` where it is not the hidden size."""

    vocab: Size
    width: SizeOrNone = 0
    learned_positions: SizeOrNone = 0
    token_types: SizeOrNone = 0
    norm: bool = False


class Head(_Table):
    """[head]: from the last hidden state to the loss."""

    tied: bool
    bias: bool = False
    transform: bool = False
    pooler: bool = False
    pooler_classes: SizeOrNone = 0
    mtp_layers: Layer = 0


Excluded = Literal["embedding", "head"]


class PublishedCounts(_Table):
    """[published]: the counts as printed. `exact` claims that our count rounds to the printed digits."""

    parameters: PrintedCount | None = None
    exact: bool = False
    excludes: list[Excluded] = []
    active: PrintedCount | None = None
    active_excludes: list[Excluded] = []
    source: str = ""
    explanation: str = ""


class ModelFile(_Table):
    """The whole file."""

    title: str
    family: str
    aliases: list[str] = []
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    dims: Dims
    norm: Norm | None = None
    attention: Attention | None = None
    feed_forward: FeedForward | None = None
    experts: Experts | None = None
    lstm: Lstm | None = None
    embedding: Embedding
    head: Head
    published: PublishedCounts
    training: dict[str, str] = {}
    sources: dict[str, str]
