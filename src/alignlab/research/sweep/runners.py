"""Where the jobs of a sweep run: processes of this machine, or a ray cluster."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from alignlab.core.config import require
from alignlab.core.errors import RunError
from alignlab.core.extras import import_extra
from alignlab.research.sweep.jobs import Job, Result, run_job

Runner = Literal["local", "ray"]


@dataclass(frozen=True)
class Places:
    """How many jobs run at a time, and on what."""

    runner: Runner = "local"
    """`ray` sends them to a cluster (extra `ray`), whose machines must see the sweep's directory."""
    jobs: int = 1
    """Jobs at a time; of ray, how many a machine of its own would take at once (a cluster decides for itself)."""
    devices: tuple[int, ...] = ()
    """GPUs of this machine: every job sees one of them, they are shared out in turn."""
    address: str = ""
    """Of the ray cluster; empty starts one on this machine."""
    cpus: float = 1.0
    """Cores that ray keeps for each job."""
    gpus: float = 0.0
    """GPUs that ray keeps for each job; below 1 they share one."""

    def __post_init__(self) -> None:
        require(self.runner in get_args(Runner), "runner", self.runner, " or ".join(get_args(Runner)))
        require(self.jobs >= 1, "jobs", self.jobs, "a whole number of at least 1")
        require(self.cpus >= 0 and self.gpus >= 0, "gpus", self.gpus, "0 or a positive number")
        require(not (self.devices and self.runner == "ray"), "devices", self.devices, "none with ray: it has --gpus")


def results_of(jobs: Sequence[Job], places: Places) -> Iterator[Result]:
    """The results as they come; who stops iterating stops the jobs."""
    return _on_ray(jobs, places) if places.runner == "ray" else _here(jobs, places)


def _here(jobs: Sequence[Job], places: Places) -> Iterator[Result]:
    """Threads that wait for processes; jobs keep to their share of the cores unless the user said otherwise."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    done: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    stopped = threading.Event()
    threads = str(max(1, (os.cpu_count() or 1) // places.jobs))

    def serve(number: int) -> None:
        environment = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}
        if places.devices:
            environment["CUDA_VISIBLE_DEVICES"] = str(places.devices[number % len(places.devices)])
        while not stopped.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put(run_job(replace(job, environment=environment), stopped))
            except BaseException as error:  # a full disk, say
                done.put(error)

    workers = [threading.Thread(target=serve, args=(i,), daemon=True) for i in range(min(places.jobs, len(jobs)))]
    for worker in workers:
        worker.start()
    try:
        for _ in jobs:
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        stopped.set()
        for worker in workers:
            worker.join()


def _on_ray(jobs: Sequence[Job], places: Places) -> Iterator[Result]:
    ray: Any = import_extra("ray", "ray")
    options: dict[str, Any] = {"log_to_driver": False, "ignore_reinit_error": True}
    if places.address:
        options["address"] = places.address
    else:
        options |= {"num_cpus": max(1, round(places.jobs * places.cpus)), "include_dashboard": False}
    ours = not ray.is_initialized()
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {places.address}" if places.address else "on this machine"
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"ray does not start {where}: {first}") from error
    remote = ray.remote(num_cpus=places.cpus, num_gpus=places.gpus, max_retries=0)(run_job)
    running = {remote.remote(job): job for job in jobs}
    try:
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                job = running.pop(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayError as error:  # the machine went away, or the disk there is full
                    lost = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
                    yield Result(job.point, job.settings, job.seed, "failed", {}, f"ray lost the job: {lost}", 0.0, "")
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()
