"""Who does the jobs of a study: this process, a few processes of this machine, or a Ray cluster."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import joblib
from joblib.externals.loky.process_executor import BrokenProcessPool
from tqdm import tqdm

from studies.drelu_paper.jobs import Job

Do = Callable[[Job], None]


@dataclass(frozen=True)
class Failure:
    """The name of a job that raised, or that waited for one that did, and the error in words."""

    job: str
    reason: str


def serial(jobs: Sequence[Job], do: Do, workers: int = 1, device: str = "cpu") -> list[Failure]:
    """One after the other in this process; after a failure the others are still done."""
    return _in_generations(jobs, lambda ready: (_attempt(do, job) for job in ready))


def processes(jobs: Sequence[Job], do: Do, workers: int, device: str = "cpu") -> list[Failure]:
    """By so many worker processes, which end with this one, however it ends.

    If a worker is killed, its generation counts as failed, and the next is begun with new workers.
    """

    def attempts(ready: Sequence[Job]) -> Iterator[str | None]:
        parallel = joblib.Parallel(workers, return_as="generator", pre_dispatch=workers, batch_size=1)
        try:
            yield from parallel(joblib.delayed(_attempt_below)(do, job, os.getpid()) for job in ready)
        except BrokenProcessPool as error:
            while True:
                yield _words(error)

    return _in_generations(jobs, attempts)


def on_ray(jobs: Sequence[Job], do: Do, workers: int, device: str = "cpu") -> list[Failure]:
    """By the cluster of ``RAY_ADDRESS``, or a local Ray of so many workers.

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
        remote = ray.remote(num_cpus=1, num_gpus=int(device.startswith("cuda")), max_retries=3)(_attempt)

        def attempts(ready: Sequence[Job]) -> Iterator[str | None]:
            for reference in [remote.remote(do, job) for job in ready]:
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield _words(error)

        return _in_generations(jobs, attempts)
    finally:
        if started:
            ray.shutdown()


ENGINES: dict[str, Callable[[Sequence[Job], Do, int, str], list[Failure]]] = {
    "serial": serial,
    "processes": processes,
    "ray": on_ray,
}


def _in_generations(jobs: Sequence[Job], attempts: Callable[[Sequence[Job]], Any]) -> list[Failure]:
    """Again and again all jobs whose needs are done; those that need a failed one are not begun.

    ``attempts`` does jobs that do not need each other; it gives, in their order, None or what failed.
    """
    failures: dict[str, Failure] = {}
    waiting = list(jobs)
    with tqdm(total=len(jobs), unit="job", dynamic_ncols=True) as bar:
        while waiting:
            names = {job.name for job in waiting}
            ready = [job for job in waiting if not names & set(job.after)]
            waiting = [job for job in waiting if names & set(job.after)]
            blocked = {job.name: name for job in ready for name in job.after if name in failures}
            failures |= {job: Failure(job, f"not begun: {name} failed") for job, name in blocked.items()}
            bar.update(len(blocked))
            begun = [job for job in ready if job.name not in blocked]
            for job, reason in zip(begun, attempts(begun), strict=False):
                if reason is not None:
                    failures[job.name] = Failure(job.name, reason)
                bar.update()
    return list(failures.values())


def _attempt(do: Do, job: Job) -> str | None:
    """Do the job; what failed, in words."""
    try:
        do(job)
    except Exception as error:
        return _words(error)
    return None


def _attempt_below(do: Do, job: Job, parent: int) -> str | None:
    """The same in a worker, which ends as soon as its parent has ended."""
    if os.getpid() != parent and not any(thread.name == "parent" for thread in threading.enumerate()):
        threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()
    return _attempt(do, job)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
