"""One training run as a project: how long, on how many device-hours, for how much, with failures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from simulator import catalog
from simulator.arch.parameters import parameters
from simulator.errors import Complaints, InputError
from simulator.estimate import estimate
from simulator.parallel.lower import sequence_lengths
from simulator.project.checkpoint import Checkpoint, bytes_per_parameter, checkpoint, checkpoint_writers
from simulator.project.energy import DEFAULT_CARBON_KG_PER_KWH, DEFAULT_PUE, carbon_kg, energy_kwh, mean_power
from simulator.project.goodput import (
    DETECTION_S,
    LLAMA3_DEVICE_MTBF_S,
    RESTART_S,
    Goodput,
    goodput,
    job_mtbf_s,
    share_waiting,
    spread_slowdown,
)
from simulator.project.scaling_laws import (
    CAVEAT,
    LAWS,
    critical_batch_tokens,
    loss,
    off_optimum,
    optimal_tokens,
    training_flops,
)
from simulator.result import Estimate
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy

DAY_S = 86400.0
MAX_TOKENS = 1e18


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What surrounds a run: prices, power, failures. Every default is a measured or stated figure."""

    price_usd_per_device_hour: float | None = None
    """None takes the catalogue's price of the cluster, if it has one."""
    watts_per_device: float | None = None
    """Mean power of a device with its share of the system; None takes the measured or assumed one."""
    pue: float = DEFAULT_PUE
    carbon_kg_per_kwh: float = DEFAULT_CARBON_KG_PER_KWH
    device_mtbf_s: float = LLAMA3_DEVICE_MTBF_S
    detection_s: float = DETECTION_S
    restart_s: float = RESTART_S
    storage_bytes_per_s: float | None = None
    """Write bandwidth of the storage for the whole job; None is 150 MB/s per writing device (BLOOM)."""
    asynchronous: bool = False
    """Checkpoints are copied to host memory and written beside training."""
    interval_s: float | None = None
    """Useful work between checkpoints; None is the optimum."""
    spare_nodes: int | None = None
    """Nodes kept beside the job (and paid for); None: a failed node is replaced at once, at no cost."""
    repair_s: float = DAY_S
    spread_fraction: float = 0.0
    """Relative standard deviation of the devices' speeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Time and money of training on so many tokens at one step time. `ideal_days` is without failures, `days` with
    them.
    """

    tokens: float
    steps: int
    ideal_days: float
    days: float
    device_hours: float
    """Devices and spares, for the whole time."""
    usd: float | None
    """None where no price is known."""
    energy_kwh: float | None
    carbon_kg: float | None
    spare_devices: int
    goodput: Goodput
    checkpoint: Checkpoint


@dataclass(frozen=True, kw_only=True)
class Project:
    """A training run, whole. `ideal_days` is without failures, `days` with them."""

    estimate: Estimate = field(repr=False)
    parameters: int
    active_parameters: int
    tokens: float
    steps: int
    ideal_days: float
    days: float
    devices: int
    spare_devices: int
    device_hours: float
    """Devices and spares, for the whole time."""
    usd: float | None
    energy_kwh: float | None
    carbon_kg: float | None
    training_flops: float
    """6 N D with the parameters that a token visits."""
    goodput: Goodput
    checkpoint: Checkpoint
    optimal_tokens: Mapping[str, float]
    """Compute-optimal tokens for this model by each scaling law."""
    loss_nats: float
    critical_batch_tokens: float
    batch_tokens: float
    steps_over_fewest: float
    """At this batch, by McCandlish 2018; 2 at the critical batch."""
    largest_useful_dp: int
    """Data parallelism at the critical batch with this micro-batch: beyond it, more replicas save little time."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `shardwise project --json`."""
        plain = {name: value for name, value in vars(self).items() if name != "estimate"}
        return {
            **plain,
            "goodput": {**asdict(self.goodput), "failures_per_day": self.goodput.failures_per_day},
            "checkpoint": {**asdict(self.checkpoint), "lag_s": self.checkpoint.lag_s},
            "optimal_tokens": dict(self.optimal_tokens),
            "provenance": dict(self.provenance),
            "notes": list(self.notes),
            "estimate": self.estimate.to_dict(),
        }


def project(
    model: ModelSpec,
    cluster: Cluster,
    run: Run,
    strategy: Strategy,
    *,
    tokens: float | None = None,
    conditions: Conditions | None = None,
    framework: Framework | None = None,
) -> Project:
    """What training `model` on `tokens` tokens takes on this cluster under this strategy.

    `tokens` None takes 20 per parameter that a token visits (Hoffmann 2022, approaches 1 and 2).
    Raises InputError as `estimate` does, and for tokens or conditions that make no sense.
    """
    around = conditions or Conditions()
    check_conditions(around, tokens)
    software = framework if framework is not None else catalog.load_framework(run.framework)
    step = estimate(model, cluster, run, strategy, framework=software)
    count = parameters(model)
    paid = bill(model, cluster, run, strategy, step_time_s=step.step_time_s, tokens=tokens, conditions=around,
                framework=software)  # fmt: skip
    batch_tokens = step.tokens_per_s * step.step_time_s
    reached = loss(LAWS["besiroglu"], count.active, paid.tokens)
    critical = critical_batch_tokens(reached)
    return Project(
        estimate=step, parameters=count.total, active_parameters=count.active, tokens=paid.tokens, steps=paid.steps,
        ideal_days=paid.ideal_days, days=paid.days, devices=strategy.devices, spare_devices=paid.spare_devices,
        device_hours=paid.device_hours, usd=paid.usd, energy_kwh=paid.energy_kwh, carbon_kg=paid.carbon_kg,
        training_flops=training_flops(count.active, paid.tokens), goodput=paid.goodput, checkpoint=paid.checkpoint,
        optimal_tokens=_laws(count.active), loss_nats=reached, critical_batch_tokens=critical,
        batch_tokens=batch_tokens, steps_over_fewest=off_optimum(batch_tokens, critical)[0],
        largest_useful_dp=max(1, int(critical / (batch_tokens / run.global_batch) // strategy.micro_batch)),
        provenance=_provenance(around, cluster), notes=_notes(step, batch_tokens, critical, model),
    )  # fmt: skip


def bill(
    model: ModelSpec,
    cluster: Cluster,
    run: Run,
    strategy: Strategy,
    *,
    step_time_s: float,
    tokens: float | None = None,
    conditions: Conditions | None = None,
    framework: Framework | None = None,
) -> Bill:
    """Days, device hours, dollars and energy of training on `tokens` tokens, `step_time_s` seconds a step.

    `tokens` None takes 20 per parameter that a token visits (Hoffmann 2022, approaches 1 and 2).
    Raises InputError for tokens or conditions that make no sense.
    """
    around = conditions or Conditions()
    check_conditions(around, tokens)
    software = framework if framework is not None else catalog.load_framework(run.framework)
    count = parameters(model)
    wanted = tokens if tokens is not None else optimal_tokens(count.active, None)
    batch_tokens = run.global_batch * sum(sequence_lengths(model, run))
    steps = math.ceil(wanted / batch_tokens - 1e-9)
    saved = checkpoint(
        count.total * bytes_per_parameter(run, software), checkpoint_writers(strategy),
        storage_bytes_per_s=around.storage_bytes_per_s, asynchronous=around.asynchronous,
    )  # fmt: skip
    shares = _goodput(around, saved, cluster, strategy)
    ideal_days = steps * step_time_s / DAY_S
    days = _divided(ideal_days, shares.useful_fraction)
    spare_devices = (around.spare_nodes or 0) * cluster.devices_per_node
    device_hours = days * 24.0 * (strategy.devices + spare_devices)
    money = _money(around, cluster, device_hours, days * 24.0 * strategy.devices)
    return Bill(tokens=wanted, steps=steps, ideal_days=ideal_days, days=days, device_hours=device_hours,
                usd=money["usd"], energy_kwh=money["energy_kwh"], carbon_kg=money["carbon_kg"],
                spare_devices=spare_devices, goodput=shares, checkpoint=saved)  # fmt: skip


def _divided(ideal_days: float, useful: float) -> float:
    if useful <= 1e-6:
        raise InputError(["failures come faster than this job can save and restart: it makes no progress."])
    return ideal_days / useful


def _laws(active: float) -> dict[str, float]:
    by_law = {name: optimal_tokens(active, law) for name, law in LAWS.items()}
    return {"20 per parameter": optimal_tokens(active, None), **by_law}


def _goodput(around: Conditions, saved: Checkpoint, cluster: Cluster, strategy: Strategy) -> Goodput:
    waiting = 0.0
    if around.spare_nodes is not None:
        nodes = math.ceil(strategy.devices / cluster.devices_per_node)
        node_mtbf_s = around.device_mtbf_s / cluster.devices_per_node
        waiting = share_waiting(nodes, around.spare_nodes, node_mtbf_s, around.repair_s)
    return goodput(
        job_mtbf_s=job_mtbf_s(around.device_mtbf_s, strategy.devices),
        save_s=saved.blocking_s,
        recovery_s=around.detection_s + around.restart_s,
        lag_s=saved.lag_s,
        interval_s=around.interval_s,
        slowdown_factor=spread_slowdown(around.spread_fraction, strategy.devices),
        waiting_fraction=waiting,
    )


def price_of(cluster: Cluster, around: Conditions) -> float | None:
    """Dollars per device hour: the given ones, else the catalogue's; None where neither is known."""
    given = around.price_usd_per_device_hour
    return given if given is not None else cluster.price_usd_per_device_hour or None


def _money(around: Conditions, cluster: Cluster, paid_hours: float, busy_hours: float) -> dict[str, float | None]:
    """Dollars for all devices held; energy for those that work (a spare is off or idle, and not counted)."""
    price = price_of(cluster, around)
    power = mean_power(cluster.node_devices or (cluster.device,), around.watts_per_device)
    drawn = None if power is None else energy_kwh(busy_hours, power.watts, around.pue)
    return {
        "usd": None if price is None else paid_hours * price,
        "energy_kwh": drawn,
        "carbon_kg": None if drawn is None else carbon_kg(drawn, around.carbon_kg_per_kwh),
    }


def _provenance(around: Conditions, cluster: Cluster) -> dict[str, str]:
    default = Conditions()
    power = mean_power(cluster.node_devices or (cluster.device,), around.watts_per_device)
    given_price = around.price_usd_per_device_hour is not None
    price = "given" if given_price else cluster.device.sources.get("price") or cluster.sources.get("cluster", "")
    known = given_price or cluster.price_usd_per_device_hour
    mtbf = "Llama 3 paper, Table 5: 419 interruptions in 54 days on 16,384 H100"
    detection = "torch's default collective timeout, 10 min"
    return {
        "price": price if known else "not known: give one",
        "power": f"{power.kind}: {power.source}" if power else "not known: give one",
        "device_mtbf": mtbf if around.device_mtbf_s == default.device_mtbf_s else "given",
        "detection": detection if around.detection_s == default.detection_s else "given",
        "restart": "assumed: 5 min" if around.restart_s == default.restart_s else "given",
        "storage": "given" if around.storage_bytes_per_s else "150 MB/s per writing device (BLOOM)",
    }


def _notes(step: Estimate, batch_tokens: float, critical: float, model: ModelSpec) -> tuple[str, ...]:
    notes = list(step.notes)
    if not step.fits:
        notes.append("The step does not fit in device memory: this project cannot run as it stands.")
    if batch_tokens > critical:
        notes.append(
            f"The batch of {batch_tokens / 1e6:.3g}M tokens is above the critical batch of about "
            f"{critical / 1e6:.3g}M at the final loss: a larger one saves little time."
        )
    if model.mixture:
        notes.append("Scaling laws of dense models, taken at the parameters that a token visits: a rough guide here.")
    notes.append(CAVEAT)
    return tuple(notes)


def with_conditions(base: Conditions, chosen: Mapping[str, Any]) -> Conditions:
    """`base` with the values that are given (None means not given)."""
    return replace(base, **{name: value for name, value in chosen.items() if value is not None})


def check_conditions(around: Conditions, tokens: float | None = None) -> None:
    """Raise InputError with every condition that makes no sense."""
    complaints = Complaints()
    if tokens is not None:
        message = f"tokens({tokens:g}) must be between 1 and {MAX_TOKENS:g}."
        complaints.require(1 <= tokens <= MAX_TOKENS, message, where="--tokens")
    for name, least in _LEAST.items():
        value = getattr(around, name)
        if value is not None and not (least <= value < math.inf):
            complaints.add(f"{name}({value:g}) must be a finite number of at least {least:g}.", where=name)
    complaints.require(around.spread_fraction < 0.5, "a spread of half the speed or more is no spread of one kind of "
                       "device.", where="spread_fraction")  # fmt: skip
    complaints.raise_if_any()


_LEAST = {
    "price_usd_per_device_hour": 0.0, "watts_per_device": 0.0, "pue": 1.0, "carbon_kg_per_kwh": 0.0,
    "device_mtbf_s": 1.0, "detection_s": 0.0, "restart_s": 0.0, "storage_bytes_per_s": 1.0, "interval_s": 1e-3,
    "spare_nodes": 0, "repair_s": 0.0, "spread_fraction": 0.0,
}  # fmt: skip
"""The least value of each condition that makes sense."""
