"""The models and strategies that are measured. No size here is one of calibration's: those are odd multiples of 16."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from simulator.errors import InputError, Problem, did_you_mean
from simulator.spec.model import (
    AttentionSpec,
    EmbeddingSpec,
    ExpertsSpec,
    FeedForwardSpec,
    HeadSpec,
    LayerSpec,
    ModelSpec,
    StackSpec,
)
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy

FRAMEWORK = "pytorch-cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training step to measure: a model of the suite, a run and a strategy."""

    model: str
    run: Run
    strategy: Strategy

    @property
    def name(self) -> str:
        """The model and what differs from one plain process: "gpt-9m pp2 1f1b m8"."""
        s = self.strategy
        degrees = [f"{axis}{getattr(s, axis)}" for axis in ("tp", "cp", "ep", "dp", "pp", "vp") if getattr(s, axis) > 1]
        micro_batches = self.run.global_batch // (s.micro_batch * s.dp)
        words = [*degrees, "sp" if s.sequence_parallel else "", f"zero{s.zero}" if s.zero else "",
                 s.schedule if s.pp > 1 else "",
                 f"m{micro_batches}" if micro_batches > 1 else "",
                 "recompute" if s.recompute == "full" else "", self.run.attention or "",
                 self.run.precision if self.run.precision != "fp32" else "",
                 self.run.optimizer if self.run.optimizer != "adamw" else "",
                 f"b{s.micro_batch}", f"s{self.run.seq_len}"]  # fmt: skip
        return " ".join([self.model, *filter(None, words)])

    @property
    def tokens(self) -> int:
        """Tokens of one step, over all ranks."""
        return self.run.global_batch * self.run.seq_len


def _attention(width: int, heads: int, *, causal: bool, bias: bool, rope: bool = False) -> AttentionSpec:
    dim = width // heads
    return AttentionSpec(heads=heads, kv_heads=heads, head_dim=dim, value_head_dim=dim, causal=causal,
                         qkv_bias=bias, out_bias=bias, rope_head_dim=dim if rope else 0)  # fmt: skip


def _model(
    name: str, width: int, vocab: int, stacks: tuple[StackSpec, ...], *, norm: Any = "layernorm", positions: int = 0,
    embedding_norm: bool = False,
) -> ModelSpec:  # fmt: skip
    return ModelSpec(
        name=name, title=name, family="measured", hidden=width, seq_len=256, stacks=stacks,
        embedding=EmbeddingSpec(vocab=vocab, width=width, learned_positions=positions, norm=embedding_norm),
        head=HeadSpec(tied=False), norm=norm, norm_bias=norm == "layernorm",
    )  # fmt: skip


def _gpt(name: str, width: int, heads: int, layers: int, vocab: int) -> ModelSpec:
    layer = LayerSpec(attention=_attention(width, heads, causal=True, bias=True),
                      feed_forward=FeedForwardSpec(hidden=4 * width, bias=True, activation="gelu"))  # fmt: skip
    return _model(name, width, vocab, (StackSpec(role="decoder", runs=((layer, layers),)),), positions=1024)


def _bert(name: str, width: int, heads: int, layers: int, vocab: int) -> ModelSpec:
    layer = LayerSpec(attention=_attention(width, heads, causal=False, bias=True),
                      feed_forward=FeedForwardSpec(hidden=4 * width, bias=True, activation="gelu"))  # fmt: skip
    stack = StackSpec(role="encoder", runs=((layer, layers),), final_norm=False)
    return _model(name, width, vocab, (stack,), positions=512, embedding_norm=True)


def _llama(name: str, width: int, heads: int, layers: int, vocab: int, inner: int) -> ModelSpec:
    layer = LayerSpec(attention=_attention(width, heads, causal=True, bias=False, rope=True),
                      feed_forward=FeedForwardSpec(hidden=inner, gated=True, activation="silu"))  # fmt: skip
    return _model(name, width, vocab, (StackSpec(role="decoder", runs=((layer, layers),)),), norm="rmsnorm")


def _t5(name: str, width: int, heads: int, layers: int, vocab: int) -> ModelSpec:
    inner = FeedForwardSpec(hidden=4 * width, activation="relu")
    encoder = LayerSpec(attention=_attention(width, heads, causal=False, bias=False), feed_forward=inner)
    decoder = LayerSpec(attention=_attention(width, heads, causal=True, bias=False),
                        cross_attention=_attention(width, heads, causal=False, bias=False), feed_forward=inner,
                        norms=3)  # fmt: skip
    stacks = (StackSpec(role="encoder", runs=((encoder, layers),)),
              StackSpec(role="decoder", runs=((decoder, layers),)))  # fmt: skip
    return _model(name, width, vocab, stacks, norm="rmsnorm")


def _switch(name: str, width: int, heads: int, layers: int, vocab: int, experts: int) -> ModelSpec:
    attention = _attention(width, heads, causal=True, bias=False)
    dense = LayerSpec(attention=attention, feed_forward=FeedForwardSpec(hidden=4 * width, activation="relu"))
    sparse = LayerSpec(attention=attention, experts=ExpertsSpec(
        count=experts, top_k=1, hidden=4 * width, activation="relu", capacity_factor=1.0))  # fmt: skip
    runs = tuple((kind, 1) for _ in range(layers // 2) for kind in (dense, sparse))
    return _model(name, width, vocab, (StackSpec(role="decoder", runs=runs),), norm="rmsnorm")


MODELS = {
    model.name: model
    for model in (
        _gpt("gpt-1m", 128, 4, 4, 2048),
        _gpt("gpt-9m", 256, 8, 6, 8192),
        _gpt("gpt-25m", 512, 8, 6, 8192),
        _gpt("gpt-42m", 512, 8, 8, 16384),
        _bert("bert-17m", 384, 6, 6, 8192),
        _llama("llama-15m", 384, 6, 6, 8192, 1024),
        _t5("t5-13m", 256, 4, 4, 8192),
        _switch("switch-20m", 256, 4, 6, 4096, 8),
    )
}


def model_of(name: str) -> ModelSpec:
    """A model of the suite. Raises InputError for another name."""
    if name not in MODELS:
        raise InputError([Problem(f"the suite has no model {name}.", "", did_you_mean(name, MODELS))])
    return MODELS[name]


def case(
    model: str, sequences: int, seq_len: int, *, attention: str = "", precision: str = "fp32",
    optimizer: str = "adamw", **strategy: Any,
) -> Case:  # fmt: skip
    """A case with so many sequences per step; the strategy's micro-batch fills what the rest leaves."""
    degrees = Strategy(**{"sequence_parallel": False, "schedule": "1f1b", "context_kind": "all-gather", **strategy})
    micro = strategy.get("micro_batch", sequences // degrees.dp)
    run = Run(global_batch=sequences, seq_len=seq_len, precision=precision, optimizer=optimizer, framework=FRAMEWORK,
              attention=attention, target_seq_len=seq_len if len(model_of(model).stacks) > 1 else 0)  # fmt: skip
    return Case(model=model, run=run, strategy=replace(degrees, micro_batch=micro))


def _single() -> list[Case]:
    plain = [("gpt-1m", 8, 128), ("gpt-1m", 2, 64), ("gpt-9m", 8, 128), ("gpt-9m", 4, 256), ("gpt-9m", 2, 512),
             ("gpt-25m", 4, 128), ("gpt-42m", 4, 128), ("gpt-42m", 2, 512), ("bert-17m", 8, 128), ("bert-17m", 2, 512),
             ("llama-15m", 4, 256), ("llama-15m", 8, 128), ("t5-13m", 4, 128), ("t5-13m", 2, 256),
             ("switch-20m", 4, 256), ("switch-20m", 8, 128)]  # fmt: skip
    return [
        *(case(*sizes) for sizes in plain),
        case("gpt-9m", 8, 128, recompute="full"), case("llama-15m", 4, 256, recompute="full"),
        case("gpt-9m", 8, 128, micro_batch=2), case("bert-17m", 8, 128, micro_batch=2),
        case("gpt-9m", 4, 256, attention="unfused"), case("bert-17m", 8, 128, attention="unfused"),
    ]  # fmt: skip


def _double() -> list[Case]:
    tiny: tuple[dict[str, Any], ...] = (
        {"dp": 2}, {"tp": 2}, {"dp": 2, "zero": 3}, {"pp": 2, "micro_batch": 2})  # fmt: skip
    cases = [case("gpt-1m", 8, 128, **how) for how in tiny]
    for model, sequences, length in (("gpt-9m", 4, 256), ("llama-15m", 4, 128), ("gpt-42m", 4, 128)):
        cases += [case(model, sequences, length, **how) for how in (
            {"dp": 2}, {"tp": 2}, {"dp": 2, "zero": 3}, {"dp": 2, "zero": 1},
            {"pp": 2, "micro_batch": 1, "schedule": "gpipe"}, {"pp": 2, "micro_batch": 1})]  # fmt: skip
    cases += [
        case("gpt-9m", 4, 256, pp=2, micro_batch=2),
        case("gpt-9m", 4, 256, pp=2, vp=3, micro_batch=1, schedule="interleaved"),
        case("gpt-9m", 4, 256, dp=2, recompute="full"), case("gpt-9m", 4, 256, pp=2, micro_batch=1, recompute="full"),
        case("bert-17m", 2, 256, cp=2), case("bert-17m", 4, 256, dp=2), case("bert-17m", 4, 256, tp=2),
        case("switch-20m", 4, 256, dp=2), case("switch-20m", 4, 256, dp=2, ep=2),
        case("switch-20m", 4, 256, dp=2, zero=3),
        case("switch-20m", 4, 256, pp=2, micro_batch=2),
        case("t5-13m", 4, 128, dp=2), case("t5-13m", 4, 128, dp=2, zero=3),
        case("gpt-25m", 2, 64, dp=2), case("gpt-25m", 2, 64, tp=2), case("gpt-25m", 2, 64, dp=2, zero=3),
        *(case(model, 4, length, tp=2, sequence_parallel=True)
          for model, length in (("gpt-9m", 256), ("llama-15m", 128), ("gpt-42m", 128), ("bert-17m", 256))),
    ]  # fmt: skip
    return cases


def _quadruple() -> list[Case]:
    mixes: tuple[dict[str, Any], ...] = (
        {"dp": 4}, {"tp": 4}, {"dp": 2, "tp": 2}, {"dp": 4, "zero": 3}, {"pp": 2, "tp": 2, "micro_batch": 2},
        {"pp": 2, "dp": 2, "micro_batch": 2})  # fmt: skip
    return [
        *(case("gpt-9m", 8, 256, **how) for how in mixes),
        case("gpt-42m", 4, 128, pp=4, micro_batch=1), case("gpt-42m", 4, 128, pp=2, tp=2, micro_batch=1),
        case("bert-17m", 4, 256, cp=2, dp=2), case("llama-15m", 4, 256, tp=2, dp=2),
        case("switch-20m", 8, 256, dp=4, ep=4), case("switch-20m", 8, 256, dp=4, ep=2),
        case("gpt-9m", 8, 256, tp=4, sequence_parallel=True),
        case("gpt-9m", 8, 256, tp=2, dp=2, sequence_parallel=True),
        case("llama-15m", 4, 256, tp=2, dp=2, sequence_parallel=True),
    ]  # fmt: skip


TINY = (
    case("gpt-1m", 8, 128), case("gpt-1m", 32, 128), case("gpt-9m", 4, 128),
    case("gpt-1m", 16, 128, dp=2), case("gpt-1m", 16, 128, dp=2, zero=3), case("gpt-1m", 16, 128, tp=2),
    case("gpt-1m", 16, 128, pp=2, micro_batch=2),
)  # fmt: skip


BF16 = (
    case("gpt-1m", 8, 128, precision="bf16"), case("gpt-1m", 4, 256, precision="bf16"),
    case("llama-15m", 1, 128, precision="bf16"),
)  # fmt: skip
"""Without bf16 units a processor takes fifteen times as long as in fp32."""


def _gpu() -> list[Case]:
    """Single-device steps of a GPU: large enough batches that its kernels outlast their launches."""
    plain = [("gpt-9m", 32, 256), ("gpt-25m", 16, 512), ("gpt-42m", 16, 512), ("gpt-42m", 8, 1024),
             ("bert-17m", 32, 512), ("llama-15m", 32, 512), ("t5-13m", 32, 512), ("switch-20m", 32, 512)]  # fmt: skip
    return [
        *(case(*sizes, precision=precision) for precision in ("fp32", "bf16") for sizes in plain),
        *(case("gpt-42m", 16, 512, precision=precision, **how) for precision in ("fp32", "bf16")
          for how in ({"attention": "unfused"}, {"recompute": "full"}, {"micro_batch": 4})),
        case("gpt-42m", 16, 512, optimizer="sgd"),
    ]  # fmt: skip


GPU = "gpu"
"""The suite that runs on a CUDA device; the others run on the processor."""


def device_for(suite: str) -> str:
    """What a suite runs on: "cuda" or "cpu"."""
    return "cuda" if suite == GPU else "cpu"


def suite_of(name: str) -> tuple[Case, ...]:
    """The cases of a suite: "tiny" (a minute), "single" (one process), "full" (fp32 on 1, 2 and 4 processes), "bf16",
    "gpu" (one CUDA device, fp32 and bf16).

    Raises InputError for another name.
    """
    suites = {"tiny": lambda: TINY, "single": _single, "bf16": lambda: BF16, GPU: _gpu,
              "full": lambda: [*_single(), *_double(), *_quadruple()]}  # fmt: skip
    if name not in suites:
        raise InputError([Problem(f"no suite is called {name}.", "", did_you_mean(name, suites))])
    return tuple(suites[name]())


def case_of(suite: str, name: str) -> Case:
    """A case of a suite by its name. Raises InputError for another."""
    known = {entry.name: entry for entry in suite_of(suite)}
    if name not in known:
        raise InputError([Problem(f"the suite {suite} has no case {name!r}.", "", did_you_mean(name, known))])
    return known[name]
