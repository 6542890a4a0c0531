"""From the name of a schedule and its sizes to its order, or the rule it breaks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from simulator.errors import Complaints, InputError, did_you_mean
from simulator.schedule.order import Order
from simulator.schedule.orders import bidirectional, interleaved, one_f_one_b, v_shaped, zero_bubble
from simulator.spec.strategy import SCHEDULES


def make_order(
    schedule: str, *, pp: int, micro_batches: int, vp: int = 1, group_size: int = 0, paired: bool = False
) -> Order:
    """The order of a built-in schedule; the same sizes give the same (cached) value.

    `vp` is virtual stages per rank, `group_size` consecutive micro-batches per virtual stage (interleaved only;
    0 is pp). `paired` overlaps each steady forward with a backward so that expert communication hides (interleaved;
    DualPipe does so by itself). Raises InputError with every rule that the sizes break.
    """
    check_sizes(schedule, pp=pp, micro_batches=micro_batches, vp=vp, group_size=group_size)
    if paired and schedule not in ("interleaved", "dualpipe", "dualpipev"):
        raise InputError([f"{schedule} cannot pair forwards with backwards: use interleaved, dualpipe or dualpipev"])
    return RECENT.get((schedule, pp, micro_batches, vp, group_size, paired and schedule == "interleaved"))


class _Recent:
    """Orders made lately, up to a number of tasks in all (their graphs are kept with them)."""

    def __init__(self, most_tasks: int) -> None:
        self.most_tasks = most_tasks
        self.orders: OrderedDict[tuple[str, int, int, int, int, bool], Order] = OrderedDict()
        self.tasks = 0
        self.lock = Lock()

    def get(self, key: tuple[str, int, int, int, int, bool]) -> Order:
        with self.lock:
            found = self.orders.get(key)
            if found is not None:
                self.orders.move_to_end(key)
                return found
        made = _make(*key)
        with self.lock:
            if key in self.orders:
                return self.orders[key]
            self.orders[key] = made
            self.tasks += made.tasks
            while self.tasks > self.most_tasks and len(self.orders) > 1:
                _, dropped = self.orders.popitem(last=False)
                self.tasks -= dropped.tasks
        return made

    def clear(self) -> None:
        with self.lock:
            self.orders.clear()
            self.tasks = 0


RECENT = _Recent(most_tasks=1_000_000)
"""About 200 MB with their graphs."""


def _make(schedule: str, pp: int, micro_batches: int, vp: int, group_size: int, paired: bool) -> Order:
    if paired:
        return interleaved.interleaved(pp, micro_batches, vp, group_size or pp, paired=True)
    return _MAKERS[schedule](pp, micro_batches, vp, group_size or pp)


_MAKERS: dict[str, Callable[[int, int, int, int], Order]] = {
    "gpipe": lambda pp, m, _vp, _group: one_f_one_b.gpipe(pp, m),
    "1f1b": lambda pp, m, _vp, _group: one_f_one_b.one_f_one_b(pp, m),
    "eager-1f1b": lambda pp, m, _vp, _group: one_f_one_b.eager_one_f_one_b(pp, m),
    "interleaved": interleaved.interleaved,
    "interleaved-bfs": lambda pp, m, vp, _group: interleaved.breadth_first(pp, m, vp),
    "zb-h1": zero_bubble.zb_h1,
    "zb-h2": lambda pp, m, _vp, _group: zero_bubble.zb_h2(pp, m),
    "zbv": lambda pp, m, _vp, _group: v_shaped.zbv(pp, m),
    "v-half": lambda pp, m, _vp, _group: v_shaped.v_half(pp, m),
    "v-min": lambda pp, m, _vp, _group: v_shaped.v_min(pp, m),
    "dualpipe": lambda pp, m, _vp, _group: bidirectional.dualpipe(pp, m),
    "dualpipev": lambda pp, m, _vp, _group: v_shaped.dualpipe_v(pp, m),
    "chimera": lambda pp, m, _vp, _group: bidirectional.chimera(pp, m),
}
_LOOPED = ("interleaved", "interleaved-bfs")
_FOLDED = ("zbv", "v-half", "v-min", "dualpipev")
_EVEN = ("dualpipe", "chimera")


def check_sizes(schedule: str, *, pp: int, micro_batches: int, vp: int = 1, group_size: int = 0) -> None:
    """Raises InputError with every rule of a schedule that the sizes break."""
    if schedule not in SCHEDULES:
        raise InputError([f"unknown schedule {schedule!r}. {did_you_mean(schedule, SCHEDULES)}"])
    broken = Complaints()
    broken.require(pp >= 1, f"pp({pp}) must be at least 1", where="--pp")
    broken.require(micro_batches >= 1, f"micro_batches({micro_batches}) must be at least 1", where="micro_batches")
    broken.raise_if_any()
    grouped = schedule == "interleaved" or (schedule == "zb-h1" and vp > 1)
    if not grouped:
        broken.require(group_size == 0, f"{schedule} has no group size ({group_size} given)", where="group_size")
    _check_stages(broken, schedule, pp, vp)
    if grouped:
        _check_group(broken, schedule, pp, micro_batches, group_size or pp)
    if schedule in ("dualpipe", "dualpipev"):
        broken.require(
            micro_batches >= 2 * pp,
            f"{schedule} needs micro_batches({micro_batches}) >= 2 pp({2 * pp})",
            where="micro_batches",
        )
    if schedule == "dualpipe":
        broken.require(
            micro_batches % 2 == 0, f"dualpipe needs an even micro_batches({micro_batches})", where="micro_batches"
        )
    if schedule == "chimera":
        broken.require(
            micro_batches % pp == 0,
            f"chimera needs whole units of pp: micro_batches({micro_batches}) mod pp({pp}) = {micro_batches % pp}",
            where="micro_batches",
        )
    broken.raise_if_any()


def _check_stages(broken: Complaints, schedule: str, pp: int, vp: int) -> None:
    if schedule in _LOOPED:
        broken.require(vp >= 2, f"{schedule} needs vp >= 2, got vp({vp})", where="--vp", hint="Use 1f1b for vp = 1.")
    elif schedule in _FOLDED:
        broken.require(vp == 2, f"{schedule} needs vp = 2 (the V), got vp({vp})", where="--vp", hint="Use vp = 2.")
    elif schedule == "zb-h1":
        broken.require(vp >= 1, f"zb-h1 needs vp >= 1, got vp({vp})", where="--vp")
    else:
        broken.require(vp == 1, f"{schedule} has one stage per rank, got vp({vp})", where="--vp", hint="Use vp = 1.")
    if vp > 1:
        broken.require(pp >= 2, f"{schedule} with vp({vp}) needs pp >= 2, got pp({pp})", where="--pp")
    if schedule in _EVEN:
        broken.require(pp % 2 == 0, f"{schedule} runs both ways and needs an even pp, got pp({pp})", where="--pp")


def _check_group(broken: Complaints, schedule: str, pp: int, micro_batches: int, group: int) -> None:
    """Megatron-LM schedules.py, `forward_backward_pipelining_with_interleaving`: the same two refusals."""
    least = max(pp, group)
    broken.require(
        pp <= group <= micro_batches,
        f"{schedule} needs pp({pp}) <= group_size({group}) <= micro_batches({micro_batches})",
        where="group_size",
        hint=f"Use a group_size of {least} and at least {least} micro-batches.",
    )
    # Fewer micro-batches than one group: the rule above has said so.
    rest = micro_batches % group if group <= micro_batches else 0
    broken.require(
        rest == 0 or rest >= pp,
        f"micro_batches({micro_batches}) mod group_size({group}) = {rest} must be 0 or at least pp({pp})",
        where="micro_batches",
        hint=f"Use {micro_batches - rest} or {micro_batches - rest + group} micro-batches.",
    )
