"""Who does the jobs of a study: this process, a few processes of this machine, or a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from studies.drelu_paper.jobs import Job

Do = Callable[[Job], None]


@dataclass(frozen=True)
class Failure:
    """A job that raised, or that waited for one that did.

    Attributes:
        job: its name.
        reason: the error in words.
    """

    job: str
    reason: str


def in_turn(jobs: Sequence[Job], do: Do, workers: int = 1, device: str = "cpu") -> list[Failure]:
    """One after the other in this process; after a failure the others are still done."""
    failures: dict[str, Failure] = {}
    for job in _shown(jobs):
        blocked = _blocked(job, failures)
        if blocked is None:
            try:
                do(job)
            except Exception as error:
                blocked = Failure(job.name, _words(error))
        if blocked is not None:
            failures[job.name] = blocked
    return list(failures.values())


def by_processes(jobs: Sequence[Job], do: Do, workers: int, device: str = "cpu") -> list[Failure]:
    """By so many worker processes; a job begins when what it needs is done. If one is killed, the rest is not begun."""
    failures: dict[str, Failure] = {}
    done: set[str] = set()
    waiting, running = list(jobs), dict[Future[None], Job]()
    # Spawned: a fork would take over the locks of torch's threads.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    with pool, _stopped_by_sigterm(), tqdm(total=len(jobs), unit="job", dynamic_ncols=True) as bar:
        try:
            while waiting or running:
                # No more than run at once: so the order of the jobs is kept, and results come one by one.
                for job in [one for one in waiting if all(name in done or name in failures for name in one.after)]:
                    blocked = _blocked(job, failures)
                    if blocked is not None:
                        waiting.remove(job)
                        failures[job.name] = blocked
                        bar.update()
                    elif len(running) < workers:
                        waiting.remove(job)
                        try:
                            running[pool.submit(do, job)] = job
                        except BrokenProcessPool as error:
                            failures[job.name] = Failure(job.name, f"not begun: {_words(error)}")
                            bar.update()
                ended = wait(running, return_when=FIRST_COMPLETED).done if running else ()
                for future in ended:
                    job = running.pop(future)
                    error = future.exception()
                    if error is None:
                        done.add(job.name)
                    else:
                        failures[job.name] = Failure(job.name, _words(error))
                    bar.update()
        except BaseException:
            # Leaving the pool would wait for the jobs.
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return list(failures.values())


class Terminated(KeyboardInterrupt):
    """SIGTERM: what a batch system, or kill, sends."""


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """A block in which SIGTERM raises, so that it can end its workers; only the main thread can have that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with_parent() -> None:
    """In a worker: end as soon as the parent has ended, however it did.

    A worker waits for its next job on a queue that the other workers keep open, so it would never learn of it.
    """
    parent: Any = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def by_ray(jobs: Sequence[Job], do: Do, workers: int, device: str = "cpu") -> list[Failure]:
    """By the cluster of ``RAY_ADDRESS``, or a local Ray of so many workers; Ray runs a job after its needs.

    The folders of ``Folders`` must be ones that all machines of the cluster see. A job has one of its GPUs where the
    device is a GPU: Ray hides them from jobs that do not ask.
    """
    import ray  # noqa: PLC0415 (a large package, and only this engine needs it)

    started = not ray.is_initialized()
    if started:
        # A cluster has its own number of processors, and refuses another.
        own = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, **own)
    try:
        # A job that fails because its machine is lost is run again elsewhere, from its last checkpoint.
        remote = ray.remote(num_cpus=1, num_gpus=int(device.startswith("cuda")), max_retries=3)(_after)
        references: dict[str, Any] = {}
        for job in jobs:
            references[job.name] = remote.remote(do, job, *(references[name] for name in job.after))
        names = {reference: name for name, reference in references.items()}
        left, failures = list(names), []
        # Ray's own handler, from ray.init, aborts.
        with _stopped_by_sigterm(), tqdm(total=len(jobs), unit="job", dynamic_ncols=True) as bar:
            while left:
                ended, left = ray.wait(left)
                for reference in ended:
                    try:
                        failed = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        failed = _words(error)
                    failures += [] if failed is None else [Failure(names[reference], failed)]
                    bar.update()
        return failures
    finally:
        if started:
            ray.shutdown()


ENGINES: dict[str, Callable[[Sequence[Job], Do, int, str], list[Failure]]] = {
    "serial": in_turn,
    "processes": by_processes,
    "ray": by_ray,
}


def _after(do: Do, job: Job, *before: str | None) -> str | None:
    """The job, unless one before it failed; what failed, in words."""
    for reason in before:
        if reason is not None:
            return f"not begun: {reason}"
    try:
        do(job)
    except Exception as error:
        return _words(error)
    return None


def _blocked(job: Job, failures: dict[str, Failure]) -> Failure | None:
    for name in job.after:
        if name in failures:
            return Failure(job.name, f"not begun: {name} failed")
    return None


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _shown(jobs: Sequence[Job]) -> Iterator[Job]:
    with tqdm(jobs, unit="job", dynamic_ncols=True) as bar:
        yield from bar
