"""What torch counts on a reference module: parameters by part, matrix FLOPs, tensors kept for backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from simulator.arch.operations import DTYPE_BYTES
from simulator.spec.model import ModelSpec
from simulator.validate.torch_counts.blocks import Norm, Setting
from simulator.validate.torch_counts.model import Reference

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build(setting: Setting, *, layers: int | None = None) -> Reference:
    """A reference module in the setting's dtype on the device at hand; nothing is initialised."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[setting.kernels.activation_dtype])
    try:
        return Reference(setting, layers=layers)
    finally:
        torch.set_default_dtype(before)


def parameters_by_part(setting: Setting) -> dict[str, int]:
    """Parameters of the whole model by the parts of `simulator.arch.parameters`, multi-token prediction as "mtp"."""
    with torch.device("meta"):
        model = build(setting)
    parts: Counter[str] = Counter()
    for path, module in model.named_modules():
        for name, value in module.named_parameters(recurse=False):
            parts[_part(f"{path}.{name}".split("."), module)] += value.numel()
    return dict(parts)


def _part(path: Sequence[str], module: nn.Module) -> str:
    """stacks.0.layers.3.attention.qkv.weight -> attention."""
    if path[0] == "mtp":
        return "mtp"
    if isinstance(module, Norm):
        return "norms"
    if path[0] != "stacks":
        return path[0]
    block, inner = path[4], path[5]
    if block != "moe":
        return block
    if inner.startswith(("up", "down")):
        return "experts"
    return {"router": "router", "shared": "shared_experts", "shared_gate": "shared_experts"}.get(inner, "moe")


def token_ids(model: ModelSpec, batch: int, seq_len: int, target_seq_len: int) -> list[Tensor]:
    """Zeros as the tokens of each stack."""
    lengths = (seq_len, target_seq_len or seq_len)[: len(model.stacks)]
    return [torch.zeros(batch, length, dtype=torch.int64) for length in lengths]


def flops(run: Callable[[], Tensor]) -> tuple[int, int]:
    """Forward and backward FLOPs of matrix products as torch's FlopCounterMode counts them."""
    with FlopCounterMode(display=False, custom_mapping=custom_formulas()) as forward:
        loss = run()
    with FlopCounterMode(display=False, custom_mapping=custom_formulas()) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def reference_flops(setting: Setting, batch: int, seq_len: int, target_seq_len: int = 0) -> tuple[int, int]:
    """Forward and backward FLOPs of a whole reference module under fake tensors."""
    with FakeTensorMode():
        model = build(setting)
        ids = token_ids(setting.model, batch, seq_len, target_seq_len)
        return flops(lambda: model(*ids))


def custom_formulas() -> dict[Any, Any]:
    """Formulas that torch 2.13's registry lacks: grouped products, and flash attention on the CPU."""
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    aten = torch.ops.aten

    def grouped(a: Any, b: Any, *_: Any, **__: Any) -> int:
        # 2-D x 3-D is forward and input gradient, 2-D x 2-D the weight gradient (its ragged side is contracted).
        return int(2 * a[0] * a[1] * b[-1])

    def core(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def core_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))

    return {
        aten._grouped_mm: grouped,
        aten._scaled_dot_product_flash_attention_for_cpu: core,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: core_backward,
    }


def saved_sizes(run: Callable[[], Any], constants: Iterable[Tensor]) -> list[int]:
    """Bytes of each storage that autograd keeps from `run` to its backward, largest first.

    Parameters and other `constants` are no activations. Python scalars kept as 0-dim tensors (a loss's element count)
    are left out: they are not per token; so is what was freed again before the backward.
    """
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    known = {tensor.untyped_storage()._cdata for tensor in constants}
    sizes = [
        tensor.untyped_storage().nbytes()
        for key, tensor in kept.items()
        if key not in known and tensor.dim() and tensor.untyped_storage().nbytes()
    ]
    del result
    return sorted(sizes, reverse=True)


def reference_saved(
    setting: Setting, batch: int, seq_len: int, target_seq_len: int = 0, *, layers: int | None = None
) -> list[int]:
    """Bytes of each storage kept by a reference module's forward pass and loss under fake tensors."""
    with FakeTensorMode():
        model = build(setting, layers=layers)
        ids = token_ids(setting.model, batch, seq_len, target_seq_len)
        constants = LateConstants(model)
        return saved_sizes(lambda: model(*ids), constants)


class LateConstants:
    """Parameters of a module, and the tables that its forward pass made: read after it ran."""

    def __init__(self, model: Reference) -> None:
        self.model = model

    def __iter__(self) -> Any:
        yield from self.model.parameters()
        if self.model.tables is not None:
            yield from self.model.tables.tensors()


def element_bytes(dtype: str) -> float:
    """Bytes per element of a dtype by name [B]."""
    return DTYPE_BYTES[dtype]
