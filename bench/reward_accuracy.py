"""How well reward models on one trunk predict comparisons: settings chosen inside, measured on dialogues kept back.

    python bench/reward_accuracy.py PAIRS.jsonl.gz --device cuda --workers 4 --out DIR
    python bench/reward_accuracy.py PAIRS.jsonl.gz --settings "rate=5e-4" --folds 0      # one setting, no choice

A fifth of the pairs, as whole dialogues, is kept back. On the others every setting is cross-validated (dialogues stay
together), the best is trained on all of them from several seeds, and only that is measured on what was kept back: the
first seed, every seed, and their mean margin as an ensemble. With `--cross` the chosen setting is cross-validated over
all pairs as well, which gives the narrower interval (its choice has seen four fifths of them). Margins of every pair
are written to DIR, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from alignlab.align.preference_model import PreferenceModel
from alignlab.align.reward.examples import RewardPair, dialogues, split_dialogues
from alignlab.align.reward.head_fit import fit_heads
from alignlab.align.reward.measures import measure_margins, reward_margins
from alignlab.align.reward.readers import read_pairs
from alignlab.align.reward.saved import load_base
from alignlab.align.reward.training import RewardConfig, RewardLoss, train_reward_model
from alignlab.core.config import from_dict
from alignlab.lm.lora import ALL_LINEAR, LoraConfig
from alignlab.train.config import TrainConfig


@dataclass(frozen=True)
class Setting:
    """What is chosen by cross-validation."""

    rank: int = 16
    """Of the adapter on every linear layer; 0 fits the head on the frozen trunk."""
    rate: float = 5e-4
    epochs: float = 1.0
    batch: int = 8
    flip: float = 0.0
    length: int = 512

    @property
    def name(self) -> str:
        """What differs from the defaults."""
        usual = asdict(Setting())
        return " ".join(f"{k}={v:g}" for k, v in asdict(self).items() if v != usual[k]) or "defaults"


GRID = (
    Setting(rank=0),
    Setting(rate=1e-4),
    Setting(rate=2e-4),
    Setting(rate=5e-4),
    Setting(rate=1e-3),
    Setting(rate=2e-4, epochs=2),
    Setting(rate=5e-4, epochs=2),
    Setting(rate=5e-4, batch=32, epochs=2),
    Setting(rate=5e-4, flip=0.2),
)


@dataclass(frozen=True)
class Job:
    """One training and the margins of the pairs it has not seen."""

    data: str
    model: str
    device: str
    precision: str
    setting: Setting
    learn: tuple[int, ...] = field(repr=False)
    test: tuple[int, ...] = field(repr=False)
    seed: int


@cache
def trunk(model: str, device: str):  # type: ignore[no-untyped-def]
    """The base model, loaded once in each process."""
    return load_base(model, dtype="float32", device=device)


def perform(job: Job) -> tuple[list[float], float]:
    """(margins of the test pairs, seconds of training)."""
    pairs = read_pairs(job.data)
    learn, test = [pairs[i] for i in job.learn], [pairs[i] for i in job.test]
    chosen = job.setting
    lora = None
    if chosen.rank:
        lora = LoraConfig(rank=chosen.rank, alpha=2.0 * chosen.rank, targets=(ALL_LINEAR,), seed=job.seed)
    base = trunk(job.model, job.device)
    model = PreferenceModel(base, lora=lora, max_length=chosen.length, seed=job.seed, batch_size=16)
    started = time.perf_counter()
    if chosen.rank:
        optimisation = TrainConfig(
            learning_rate=chosen.rate, warmup_steps=10, weight_decay=0.01, precision=job.precision, log_every=50,
            seed=job.seed,
        )  # fmt: skip
        loss = RewardLoss(flip_rate=chosen.flip, centre=0.01)
        config = RewardConfig(epochs=chosen.epochs, batch_size=chosen.batch, loss=loss, train=optimisation)
        train_reward_model(model, learn, config)
    else:
        fit_heads(model, learn, precision=job.precision)
    seconds = time.perf_counter() - started
    return reward_margins(model, test).tolist(), seconds


class Bench:
    """Jobs done in parallel, each recorded once."""

    def __init__(self, options: argparse.Namespace, pairs: list[RewardPair]) -> None:
        self.options, self.pairs = options, pairs
        self.path = Path(options.out) / "jobs.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.done = {line["key"]: line for line in map(json.loads, lines)}

    def margins(self, wanted: dict[str, tuple[Setting, list[int], list[int], int]]) -> dict[str, np.ndarray]:
        """The margins of each job by its key: (setting, learn, test, seed)."""
        o = self.options
        missing = {key: job for key, job in wanted.items() if key not in self.done}
        with ProcessPoolExecutor(o.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = {
                key: pool.submit(
                    perform, Job(o.data, o.model, o.device, o.precision, s, tuple(learn), tuple(test), seed)
                )
                for key, (s, learn, test, seed) in missing.items()
            }
            for key, future in futures.items():
                margins, seconds = future.result()
                self.done[key] = {"key": key, "seconds": round(seconds, 1), "margins": margins}
                with self.path.open("a") as file:
                    file.write(json.dumps(self.done[key]) + "\n")
                print(f"  {key}: {seconds:.1f} s", flush=True)
        return {key: np.array(self.done[key]["margins"]) for key in wanted}

    def cross_validated(self, settings: Sequence[Setting], among: list[int], label: str) -> dict[Setting, np.ndarray]:
        """Margins of all pairs in `among`, each by a model that has not seen its dialogue."""
        folds = dialogue_folds([self.pairs[i] for i in among], self.options.folds)
        jobs, places = {}, {}
        for setting in settings:
            for number in range(self.options.folds):
                test = [i for i, fold in zip(among, folds, strict=True) if fold == number]
                learn = [i for i, fold in zip(among, folds, strict=True) if fold != number]
                key = f"{label} fold {number}: {setting.name}"
                jobs[key], places[key] = (setting, learn, test, 0), test
        found = self.margins(jobs)
        at = {pair: place for place, pair in enumerate(among)}
        result = {setting: np.full(len(among), np.nan) for setting in settings}
        for key, (setting, *_rest) in jobs.items():
            result[setting][[at[i] for i in places[key]]] = found[key]
        return result


def dialogue_folds(pairs: list[RewardPair], folds: int) -> list[int]:
    """The fold of each pair; whole dialogues, as equal in pairs as a fixed random order makes them."""
    groups = np.array(dialogues(pairs))
    order = np.random.default_rng(0).permutation(groups.max() + 1)
    return (np.argsort(order)[groups] % folds).tolist()


def setting_value(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, int(value) if value.isdigit() else float(value)


def report(title: str, margins: np.ndarray, pairs: list[RewardPair]) -> None:
    print(f"\n{title}\n" + "\n".join("  " + line for line in measure_margins(margins, pairs).lines()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--settings", nargs="*", default=[], help='as "rate=5e-4 epochs=2"; none: a grid')
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cross", type=int, default=0, help="folds over all pairs for the chosen setting")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", default="runs/reward-accuracy")
    options = parser.parse_args()
    pairs = read_pairs(options.data)
    settings = [from_dict(Setting, dict(map(setting_value, text.split()))) for text in options.settings] or list(GRID)
    bench = Bench(options, pairs)
    learn, kept = split_dialogues(pairs, 0.2, seed=0)
    chosen = settings[0]
    if len(settings) > 1:
        found = bench.cross_validated(settings, learn, "choice")
        losses = {s: float(np.logaddexp(0, -m).mean()) for s, m in found.items()}
        for s, m in found.items():
            measured = measure_margins(m, [pairs[i] for i in learn])
            print(f"{s.name:<36} accuracy {measured.accuracy}  loss {losses[s]:.4f}", flush=True)
        chosen = max(found, key=lambda s: float((found[s] > 0).mean()))
    print(f"chosen: {chosen.name}; {len(learn)} pairs to learn from, {len(kept)} kept back")
    jobs = {f"seed {seed}: {chosen.name}": (chosen, learn, kept, seed) for seed in range(options.seeds)}
    margins, test = list(bench.margins(jobs).values()), [pairs[i] for i in kept]
    report("first seed", margins[0], test)
    print("every seed:", ", ".join(f"{(m > 0).mean():.3f}" for m in margins))
    report(f"mean of {len(margins)} seeds", np.mean(margins, axis=0), test)
    if options.cross:
        options.folds = options.cross
        everything = bench.cross_validated([chosen], list(range(len(pairs))), "all")[chosen]
        report(f"{options.cross} folds over all pairs", everything, pairs)


if __name__ == "__main__":
    main()
