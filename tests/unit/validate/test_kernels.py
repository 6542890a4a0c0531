"""Scores of kernel tables: errors against rows whose answer is known, kinds told by columns, and refusals."""

from pathlib import Path

import numpy as np
import pytest

from simulator.catalog import cluster_for, load_device
from simulator.cluster.device import gemm_time_s
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import single_node_group
from simulator.errors import InputError
from simulator.validate.kernel_devices import measured_device
from simulator.validate.kernel_rows import power_law_routing
from simulator.validate.kernels import score_tables, scores


def written(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_gemm_rows_are_scored_by_device_and_dtype_above_the_least_work(tmp_path):
    device = load_device("a100-sxm-80gb")
    slow, fast = (gemm_time_s(device, "bf16", m, 4096, 4096) * 1e3 for m in (4096, 8192))
    table = written(
        tmp_path, "gemm.csv", "device,dtype,m,n,k,kernel_source,latency_ms,measured_with",
        f"a100_sxm,bfloat16,4096,4096,4096,x,{slow / 1.1},y", f"a100_sxm,bfloat16,8192,4096,4096,x,{fast / 0.9},y",
        "a100_sxm,bfloat16,1,64,64,x,1e-3,y",
    )  # fmt: skip
    (row,) = score_tables([table])
    assert (row["table"], row["device"], row["kind"], row["scored"]) == ("gemm.csv", "a100_sxm", "gemm bfloat16", 2)
    assert row["mean"] == pytest.approx(0.1)
    assert row["median"] == pytest.approx(0.1)
    assert row["bias"] == pytest.approx(0.0, abs=1e-12)
    assert score_tables([table], min_flops=0)[0]["scored"] == 3
    assert score_tables([table], min_flops=1e15)[0]["mean"] is None


def test_collective_rows_use_the_devices_usual_node(tmp_path):
    device = measured_device("h100_sxm").name
    cluster = cluster_for(device, 8, 8)
    seconds = collective_time_s(cluster, "all_to_all", 2.0**26, single_node_group(8))
    nccl = written(
        tmp_path, "nccl.csv", "device,collective,devices,bytes,latency_ms,measured_with",
        f"h100_sxm,alltoall,8,{2**26},{seconds * 1e3 / 2},nccl", "h100_sxm,alltoall,8,512,1.0,nccl",
    )  # fmt: skip
    (row,) = score_tables([nccl])
    assert (row["kind"], row["scored"]) == ("nccl all_to_all", 1)
    assert row["bias"] == pytest.approx(1.0)


def test_attention_and_moe_tables_are_told_apart(tmp_path):
    attention = written(
        tmp_path, "a.csv", "device,batch,seq_len,heads,kv_heads,head_dim,kernel_source,latency_ms,measured_with",
        "h100_sxm,4,4096,32,8,128,x,1.2,y",
    )  # fmt: skip
    moe = written(
        tmp_path, "m.csv",
        "device,dtype,tokens,hidden,ffn_hidden,topk,experts,tp,ep,distribution,kernel_source,latency_ms,measured_with",
        "h100_sxm,fp8,8192,4096,14336,2,8,1,8,power_law_1.2,moe_torch_flow,3.6,y",
    )  # fmt: skip
    kinds = [row["kind"] for row in score_tables([attention, moe])]
    assert kinds == ["attention bfloat16", "moe fp8"]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("device,dtype,m,n,latency_ms", "a100_sxm,bfloat16,1,1,1", "nearest kind is gemm, without its k"),
        ("device,dtype,m,n,k,latency_ms", "a100_sxm,int3,4096,4096,4096,1", "dtype int3 is not modelled"),
        ("device,dtype,m,n,k,latency_ms", "z9_sxm,bfloat16,4096,4096,4096,1", "no device of the catalogue is z9_sxm"),
        ("device,collective,devices,bytes,latency_ms", "a100_sxm,gossip,8,9e9,1", "collective gossip is not modelled"),
    ],
)
def test_tables_that_cannot_be_scored_are_refused(tmp_path, header, row, message):
    with pytest.raises(InputError, match=message):
        score_tables([written(tmp_path, "t.csv", header, row)])


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
        score_tables([tmp_path / "none.csv"])


def test_measured_names_find_catalogued_devices():
    found = {name: measured_device(name).name for name in ("a100_sxm", "A100-SXM-80GB", "gb200", "GH200-120GB", "V100")}
    assert found == {
        "a100_sxm": "a100-sxm-80gb", "A100-SXM-80GB": "a100-sxm-80gb", "gb200": "gb200", "GH200-120GB": "gh200-144gb",
        "V100": found["V100"],
    }  # fmt: skip
    assert found["V100"].startswith("v100-")


def test_scores_are_of_absolute_errors():
    assert scores(np.array([0.1, -0.3])) == pytest.approx(
        {"scored": 2, "mean": 0.2, "median": 0.2, "p90": 0.28, "bias": -0.1}
    )


def test_a_power_law_loads_the_busiest_group_more_the_more_groups_there_are():
    shares = [power_law_routing(1.2, 64, ep, 4096, 8)[0] for ep in (1, 2, 8, 64)]
    assert shares[0] == pytest.approx(1.0)
    assert shares == sorted(shares)
    assert shares[-1] <= 64 / 8 * 1.01
    assert power_law_routing(1.2, 64, 1, 4096, 8)[1] <= 64
