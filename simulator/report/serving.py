"""A serving estimate as text."""

from __future__ import annotations

from simulator.report.text import rendered
from simulator.serving import Serving
from simulator.units import format_bytes, format_count, format_percent, format_time, format_usd


def serving_text(answer: Serving) -> str:
    """Latency, throughput, memory and price, as a person reads them."""
    step_s = answer.time_per_output_token_s
    parts = sorted(answer.decode_parts_s.items(), key=lambda item: -item[1])
    whole_s = sum(answer.decode_parts_s.values())
    price = answer.usd_per_million_tokens
    each = format_count(answer.output_tokens_per_s_per_device)
    held = [format_bytes(size) for size in (answer.weight_bytes, answer.kv_bytes, answer.workspace_bytes)]
    verdict = "fits" if answer.fits else "DOES NOT FIT"
    return rendered([
        (f"{answer.model}: {answer.replicas} replica{'s' * (answer.replicas > 1)} on {answer.devices} devices of "
         f"{answer.cluster}"),
        "",
        f"first token  {format_time(answer.time_to_first_token_s)} after a prompt begins",
        f"each token   {format_time(step_s)}, {format_count(1.0 / step_s)} tokens/s for a reader",
        f"throughput   {format_count(answer.output_tokens_per_s)} tokens/s, {each} per device",
        "price        " + ("no price known (--price)" if price is None else f"{format_usd(price)} per million tokens"),
        f"memory       weights {held[0]}, cache {held[1]}, workspace {held[2]}",
        f"             of {format_bytes(answer.device_memory_bytes)}: {verdict}",
        f"cache        {format_bytes(answer.kv_bytes_per_token)} per token; at most {answer.largest_batch} sequences",
        "decode       " + ", ".join(f"{name} {format_percent(s / whole_s)}" for name, s in parts),
    ])  # fmt: skip
