"""How long `import alignlab` and `alignlab --help` take: medians over fresh processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(arguments: list[str], repeats: int = 11) -> float:
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


bare = seconds(["-c", "pass"])
print(f"python itself        {bare:.3f} s")
print(f"import alignlab      {seconds(['-c', 'import alignlab']) - bare:.3f} s more")
print(f"alignlab --help      {seconds(['-m', 'alignlab', '--help']):.3f} s, the interpreter included")
