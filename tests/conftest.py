"""What every test stands on: no network, and the same examples on every run.

Hypothesis profiles: `default` (the same examples each time, so that a red test is red for everyone) and `nightly`
(20,000 random ones): HYPOTHESIS_PROFILE=nightly make test.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# A loaded machine is slow; that is no failure of the code (times are measured in benchmarks/, never here).
_ALWAYS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=100, derandomize=True, database=None, **_ALWAYS)
settings.register_profile("nightly", max_examples=20_000, **_ALWAYS)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


class NetworkError(RuntimeError):
    """A test reached for the network."""


_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_allowed = {"loopback": False}


def _guard(address: Any) -> None:
    """Refuse every address but this machine's own, and that one too unless the test is marked `loopback`."""
    if not isinstance(address, tuple):
        return  # A Unix socket's path.
    if _allowed["loopback"] and address[0] in _LOOPBACK:
        return
    raise NetworkError(f"the suite has no network: {address!r} (loopback needs @pytest.mark.loopback)")


class GuardedSocket(socket.socket):
    """A socket that asks `_guard` before it leaves the process."""

    def connect(self, address: Any) -> None:
        _guard(address)
        super().connect(address)

    def connect_ex(self, address: Any) -> int:
        _guard(address)
        return super().connect_ex(address)

    def sendto(self, data: Any, *args: Any) -> int:
        _guard(args[-1])
        return super().sendto(data, *args)


_lookup = socket.getaddrinfo


def _guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
    """Looking a name up is network access too."""
    if host not in (None, "", *_LOOPBACK):
        _guard((host,))
    return _lookup(host, *args, **kwargs)


def pytest_configure() -> None:
    """From here on, every Python socket is guarded."""
    socket.socket = GuardedSocket  # type: ignore[misc]
    socket.getaddrinfo = _guarded_lookup


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: may this test speak to loopback?"""
    _allowed["loopback"] = item.get_closest_marker("loopback") is not None


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the repository."""
    return ROOT
