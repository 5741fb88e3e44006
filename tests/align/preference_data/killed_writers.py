"""A script: processes that write judgements into one store while they are killed at random and started again.

    killed_writers.py URL PROJECT FOLDER WRITERS PAUSE SEED

Each writer judges every comparison of the project and notes in FOLDER/N those that were acknowledged. Every PAUSE
seconds or so one is killed. Prints how many were.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from killed_children import forked, killed

from alignlab.align.preference_data.collector import PreferenceCollector
from alignlab.align.preference_data.questions import read_comparisons
from alignlab.core.errors import StoreError
from alignlab.core.store import open_store


def write(url: str, project: str, ids: list[str], noted: Path, writer: int) -> None:
    """What one process does, from the first judgement that it has no note of."""
    start = len(noted.read_bytes().split(b"\n")) - 1 if noted.exists() else 0
    note = os.open(noted, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with open_store(url) as store:
        lab = PreferenceCollector(store, project=project, annotator=f"person{writer}")
        for number in range(start, len(ids)):
            task = lab.comparison(ids[number])
            place = [answer.text for answer in task.answers].index("ab"[(number + writer) % 2]) + 1
            while True:
                try:
                    lab.record(task, place, token=f"{writer}-{number}")
                    break
                except StoreError:  # busy beyond the timeout: what a page does is to send it again
                    time.sleep(0.05)
            os.write(note, f"{number}\n".encode())


def main(url: str, project: str, folder: Path, writers: int, pause: float, seed: int) -> int:
    """Start the writers, kill and restart them until all are done; the number of kills."""
    with open_store(url) as store, store.snapshot() as session:
        ids = [comparison.id for comparison in read_comparisons(session, project)]
    chance, running, kills = random.Random(seed), {}, 0

    def start(writer: int) -> None:
        running[forked(lambda: write(url, project, ids, folder / str(writer), writer))] = writer

    for writer in range(writers):
        start(writer)
    while running:
        time.sleep(chance.uniform(0, 2 * pause))
        victim = chance.choice(sorted(running))
        os.kill(victim, signal.SIGKILL)
        writer = running.pop(victim)
        if killed(victim):
            kills += 1
            start(writer)
        pause *= 1.01  # so that it ends also where a start takes longer than a pause
    return kills


if __name__ == "__main__":
    url, project, folder, writers, pause, seed = sys.argv[1:]
    print(main(url, project, Path(folder), int(writers), float(pause), int(seed)))
