"""States in host memory: ZeRO-Offload (optimizer) and ZeRO-Infinity (parameters too), as DeepSpeed runs them.

Gradients leave the device as buckets are reduced, the processors update the states where they are, and the new 16-bit
parameters come back: at the end of the step, or with every gather where their shards rest on the host as well (Ren
et al. 2021, arXiv 2101.06840; Rajbhandari et al. 2021, arXiv 2104.07857).
"""

from __future__ import annotations

from simulator.arch.operations import Number
from simulator.errors import Complaints
from simulator.parallel.states import MASTER_BYTES, MOMENT_BYTES
from simulator.spec.hardware import Cluster
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy


def host_update_bytes(run: Run) -> float:
    """Bytes of host memory that updating one parameter moves [B].

    The fp32 gradient is read, the fp32 master and the moments are read and written, the 16-bit parameter is written
    (microsoft/DeepSpeed csrc/adam/cpu_adam_impl.cpp: one pass over all of them).

    >>> host_update_bytes(Run(global_batch=1, precision="fp16", optimizer="adam"))
    30.0
    """
    return MASTER_BYTES + 2.0 * (MASTER_BYTES + MOMENT_BYTES[run.optimizer]) + 2.0


def host_update_s(owned: Number, run: Run, cluster: Cluster) -> Number:
    """Seconds in which a node's processors update the shards of all its devices [s]: bound by its memory.

    Two 7.5e9-parameter shards at 30 B each and 300 GB/s:

    >>> from simulator.catalog import load_cluster
    >>> from dataclasses import replace
    >>> node = replace(load_cluster("jean-zay-v100"), devices_per_node=2, host_memory_bytes_per_s=300e9)
    >>> host_update_s(7.5e9, Run(global_batch=1, precision="fp16", optimizer="adam"), node)
    1.5
    """
    return owned * cluster.devices_per_node * host_update_bytes(run) / cluster.host_memory_bytes_per_s


def host_link_s(moved_bytes: Number, cluster: Cluster) -> Number:
    """Seconds of one device's transfer to or from its host [s]; every device has a link of its own."""
    return moved_bytes / cluster.host_link_bytes_per_s


def check_offload(cluster: Cluster, strategy: Strategy, complaints: Complaints) -> None:
    """Complain of states offloaded without ZeRO to divide them, or on hosts that the catalogue says nothing of."""
    kind = strategy.offload
    if kind == "none":
        return
    least = 3 if kind == "parameters" else 1
    if strategy.zero < least:
        complaints.add(f"offload = {kind} needs ZeRO-{least} at least, not zero({strategy.zero}).", where="offload",
                       hint=f"Use zero = {least}.")  # fmt: skip
    if not (cluster.host_memory_bytes_per_s and cluster.host_link_bytes_per_s):
        complaints.add(f"offload = {kind}: {cluster.name} says nothing of its hosts' memory.", where="offload",
                       hint="A cluster file gives it as host_link and host_memory_bandwidth.")  # fmt: skip
