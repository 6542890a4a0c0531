"""A family without the profiles that it alone uses falls back on a generic one; what others share stays."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from simulator.validate.newcomer import newcomers, own_profiles
from simulator.validate.score import score
from tests.unit.validate.support import Answer, World, row

SECONDS = {"soft": 1.0, "megatron-core": 3.0}


def by_framework(model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy) -> Answer:
    return Answer(SECONDS[run.framework])


@dataclass(frozen=True)
class Two:
    families: tuple[str, ...]

    def figures(self) -> dict[str, float]:
        rows = [row(run_id=f"{name}{place}", family=name, step_time_s=1.0) for name in self.families
                for place in range(2)]  # fmt: skip
        scored = score(rows, by_framework, World()).rows
        return {name: found["mean"] for name, found in newcomers(rows, scored, by_framework, World()).items()}


def test_the_only_user_of_a_profile_is_scored_without_it() -> None:
    """With its profile it is exact (1 s of 1 s); as Megatron-Core it would be predicted at 3 s."""
    assert Two(("a",)).figures() == {"a": 2.0}


def test_a_profile_that_two_families_share_stays() -> None:
    assert Two(("a", "b")).figures() == {}


def test_kin_do_not_count_as_others() -> None:
    assert Two(("nvidia_dgxc", "nvidia_nemo_docs")).figures() == {"nvidia_dgxc": 2.0, "nvidia_nemo_docs": 2.0}


def test_generic_profiles_are_nobodys_own() -> None:
    rows = score([row(system="Unheard-of", run_id="x")], by_framework, World()).rows
    assert own_profiles(rows) == {}
