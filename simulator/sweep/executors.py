"""Who computes: this process, local processes, a Dask cluster or Ray. All are `concurrent.futures.Executor`s."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from simulator import catalog
from simulator.errors import InputError, Problem


class InlineExecutor(Executor):
    """Runs each call at once in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001
            # As every executor does: the caller sees it when it asks for the result.
            future.set_exception(error)
        return future


def process_pool(workers: int, catalogs: tuple[str, ...]) -> ProcessPoolExecutor:
    """Local processes that know the extra catalogues, leave Ctrl-C to the parent and end with it."""
    return ProcessPoolExecutor(
        max_workers=workers,
        # Fresh interpreters: a fork would copy the parent's threads and locks.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare,
        initargs=(catalogs, os.getpid()),
    )


def _prepare(catalogs: tuple[str, ...], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for folder in catalogs:
        catalog.add_catalog(Path(folder))
    # Points make many small values without cycles: looking for cycles less often saves a twentieth of the time.
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """End when the parent is gone: a killed sweep must not leave workers behind."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def dask_executor(address: str, timeout_s: float = 10.0) -> Executor:
    """The workers of the Dask scheduler at an address ("tcp://host:8786"). Needs the extra `dask`."""
    try:
        from distributed import Client
    except ImportError:
        raise InputError([Problem("Dask is not installed.", "--dask", "pip install 'shardwise[dask]'")]) from None
    try:
        client = Client(address, timeout=timeout_s)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError([Problem(f"no Dask scheduler answers at {address}: {error}.", "--dask")]) from None
    return _DaskExecutor(client)


class _DaskExecutor(Executor):
    """Dask's own executor, closed together with its client."""

    def __init__(self, client: Any) -> None:
        self._client = client
        # Calls on equal points are equal, but a retry must be a new task.
        self._inner = client.get_executor(pure=False)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = self._inner.submit(fn, *args, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._inner.shutdown(wait=wait and not cancel_futures)
        self._client.close()


def ray_executor(address: str) -> Executor:
    """The workers of a Ray cluster ("auto", "local" or its address). Needs the extra `ray`."""
    try:
        import ray
    except ImportError:
        raise InputError([Problem("Ray is not installed.", "--ray", "pip install 'shardwise[ray]'")]) from None
    ray.init(address=None if address == "local" else address, include_dashboard=False, log_to_driver=False)
    return _RayExecutor(ray)


class _RayExecutor(Executor):
    """Remote calls as futures; Ray retries a call whose worker died."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._remote = ray.remote(_call)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = self._remote.remote(fn, args, kwargs).future()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        del wait, cancel_futures
        self._ray.shutdown()


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)
