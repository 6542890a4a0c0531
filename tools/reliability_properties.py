"""Which test holds which property that every answer must keep: the table in validation/RELIABILITY.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPLIT, PLAIN = "properties/test_split_properties.py", "properties/test_estimate_properties.py"
NET, LINKS = "properties/test_network_properties.py", "properties/test_network_links.py"
GRAPHS, KERNEL = "properties/test_network_graphs.py", "properties/test_kernel_properties.py"
ORDER, PLAN = "properties/test_schedule_properties.py", "properties/test_plan_properties.py"
CLOSED = "unit/schedule/test_closed.py"

PROPERTIES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("stage parameters sum to the model's", ((SPLIT, "test_parameters_of_all_stages_are_the_models"),)),
    ("tensor shards sum to the whole", (
        ("unit/parallel/test_lower.py", "test_tensor_shards_sum_to_the_whole_with_norms_and_row_biases_replicated"),)),
    ("parts sum to their totals, none is negative", ((SPLIT, "test_parts_sum_to_their_totals"),
                                                     (PLAIN, "test_parts_are_never_negative_and_sum_to_their_totals"))),
    ("tokens per step = dp x micro-batches x micro-batch x sequence", (
        (SPLIT, "test_tokens_of_a_step_are_replicas_times_micro_batches"),)),
    ("FLOPs do not depend on the split", ((SPLIT, "test_flops_do_not_depend_on_the_split"),
                                         (PLAIN, "test_no_work_of_the_model_goes_missing"))),
    ("recomputation adds exactly the recomputed part", ((SPLIT, "test_recomputation_executes_the_layers_once_more"),)),
    ("bytes sent are bytes received", ((LINKS, "test_bytes_sent_are_bytes_received"),)),
    ("all-reduce = reduce-scatter + all-gather", (
        (NET, "test_ring_all_reduce_moves_what_reduce_scatter_and_all_gather_move"),)),
    ("wire volume 2 (p - 1) / p n", (("unit/cluster/test_collectives.py", "test_a_collective_costs_its_messages"),)),
    ("every forward has one backward; busy + idle = makespan", (
        (ORDER, "test_nothing_is_lost_and_nothing_runs_twice"),)),
    ("in-flight micro-batches of 1F1B = min(p - s, m)", (
        (CLOSED, "test_orders_are_complete_and_hold_the_published_number_of_micro_batches"),)),
    ("activation memory is never negative and comes back", (
        (ORDER, "test_memory_is_never_negative_and_comes_back"),)),
    ("more FLOP/s, memory or link bandwidth: never slower", (
        (SPLIT, "test_faster_devices_and_links_are_never_slower"), (NET, "test_bandwidth_helps_and_latency_hurts"))),
    ("more latency: never faster", ((SPLIT, "test_longer_latencies_are_never_faster"),)),
    ("more layers, tokens or vocabulary: never faster", (
        (SPLIT, "test_more_layers_tokens_or_words_are_never_faster"),)),
    ("more bytes: never faster, no jump", ((NET, "test_more_bytes_take_longer_and_no_jump"),)),
    ("more work in a kernel: never faster, no jump", (
        (KERNEL, "test_gemm_time_never_falls_when_work_grows"), (KERNEL, "test_gemm_time_is_continuous"),
        (KERNEL, "test_attention_time_never_falls_when_work_grows"),
        (KERNEL, "test_grouped_time_never_falls_when_work_grows"))),
    ("more device memory: never infeasible", ((SPLIT, "test_more_memory_never_makes_a_strategy_infeasible"),)),
    ("higher ZeRO stage: never more states", ((SPLIT, "test_a_higher_zero_stage_never_holds_more_states"),)),
    ("more recomputation: never more activations, never fewer FLOPs", (
        (SPLIT, "test_more_recomputation_keeps_less_and_works_more"),)),
    ("more overlap: never slower", ((SPLIT, "test_allowed_overlap_is_never_slower"),)),
    ("more micro-batches: never a larger idle share", (
        (SPLIT, "test_more_micro_batches_never_leave_a_larger_share_idle"),)),
    ("a faster node: never slower", (
        ("properties/test_unequal_properties.py", "test_a_faster_node_is_never_slower"),)),
    ("a larger space: never a worse best", (
        (PLAN, "test_a_larger_space_never_gives_a_worse_best_and_equal_input_gives_equal_bytes"),)),
    ("the plan is the optimum of all strategies run", (
        (PLAN, "test_the_answer_is_the_optimum_of_all_strategies_run"),)),
    ("bounds never exceed the engine", (
        (ORDER, "test_lower_bounds_never_exceed_the_engine"),
        (PLAN, "test_bounds_never_exceed_the_engine_and_memory_never_exceeds_the_estimate"))),
    ("all degrees 1: nothing is sent, nothing waits", ((SPLIT, "test_one_device_sends_nothing"),
                                                       (NET, "test_one_rank_and_no_bytes_cost_nothing"))),
    ("renaming nodes, devices or ranks changes nothing", (
        (NET, "test_renaming_nodes_changes_nothing"), (LINKS, "test_renaming_devices_and_switches_changes_nothing"),
        (LINKS, "test_renaming_the_nodes_of_a_rank_file_changes_nothing"))),
    ("the order of layers inside a stage changes nothing", (
        (SPLIT, "test_the_order_of_layers_inside_a_stage_changes_nothing"),)),
    ("mirrored ranks are alike", ((ORDER, "test_mirrored_ranks_are_alike"),)),
    ("all times scaled by k scale the answer by k", ((ORDER, "test_seconds_scale"),)),
    ("price in cents = 100 x price in dollars", ((SPLIT, "test_dollars_follow_the_price_and_tokens"),)),
    ("compute <= step <= compute + communication + waiting", ((SPLIT, "test_a_step_lies_within_its_bracket"),)),
    ("closed form and engine agree to 1e-9", (
        (CLOSED, "test_engine_equals_the_closed_form_for_every_legal_size"),)),
    ("engine and simpy agree exactly", (
        ("oracles/test_schedule_simpy.py", "test_engine_equals_simpy_with_unequal_stages_and_transfers"),)),
    ("partition by dynamic programme and by HiGHS agree", (
        ("oracles/test_partition_highs.py", "test_the_split_is_the_solver_s"),)),
    ("parser and pint agree", (("unit/test_units.py", "test_every_unit_agrees_with_pint"),)),
    ("arrays and scalars agree to 1e-12", (
        ("properties/test_broadcasting.py", "test_an_array_of_strategies_gives_each_strategy_s_own_numbers"),
        (NET, "test_arrays_agree_with_scalars"), (KERNEL, "test_gemm_arrays_equal_scalars"))),
    ("graph shortest paths and closed-form hops agree", (
        (GRAPHS, "test_hops_and_paths_from_every_kind_of_device"), (GRAPHS, "test_any_fat_tree"),
        (GRAPHS, "test_any_torus"))),
    ("parameters equal torch's modules", (
        ("oracles/test_torch_parameters.py", "test_every_part_of_every_model_equals_its_torch_module"),)),
    ("FLOPs equal torch's counter", (("oracles/test_torch_flops.py", "test_the_torch_convention_is_torchs_count"),)),
    ("any text is answered or refused", (
        ("unit/spec/test_reading.py", "test_any_text_is_answered"),
        ("unit/test_units.py", "test_any_input_is_answered"),
        ("unit/test_catalog.py", "test_any_name_is_answered"),
        ("unit/spec/test_model_file.py", "test_whatever_is_written_in_a_file_it_is_read_or_refused_politely"))),
    ("export, then import, gives the same strategy", (
        ("unit/io/test_round_trips.py", "test_megatron_flags_read_back"),
        ("unit/io/test_round_trips.py", "test_torchtitan_reads_back_and_its_degrees_make_the_devices"))),
    ("same input, same bytes, whoever computes", (
        ("unit/sweep/test_run.py", "test_processes_give_the_same_bytes"),
        (PLAIN, "test_the_same_question_has_the_same_answer"))),
)  # fmt: skip
"""(property, tests that hold it as (file under tests/, name))."""


def missing_tests() -> list[str]:
    """Tests that the table names and that are not there."""
    lost = []
    for file, name in {pair for _, tests in PROPERTIES for pair in tests}:
        path = ROOT / "tests" / file
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])
        if name not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
            lost.append(f"{file}::{name}")
    return sorted(lost)


def property_lines() -> Iterator[str]:
    """The table in Markdown."""
    yield from ("## Properties, and the tests that hold them", "", "| property | held by |", "|---|---|")
    for said, tests in PROPERTIES:
        yield f"| {said} | {', '.join(f'`{file}::{name}`' for file, name in tests)} |"
