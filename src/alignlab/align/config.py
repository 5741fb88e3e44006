"""`AlignConfig`: everything that `alignlab align` can be told."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from alignlab.core.config import require
from alignlab.core.errors import ConfigError
from alignlab.lm.remote_limits import Dialect, RemoteLimits, RemoteOptions
from alignlab.lm.remote_usage import Price


def require_all(settings: object, where: str, *, counts: Sequence[str] = (), positive: Sequence[str] = ()) -> None:
    """ConfigError unless the fields `counts` are at least 1 and `positive` above 0; `where` precedes their names.

    Said here, at the start: the stage that uses a wrong value may come hours later.
    """
    for name in counts:
        require(getattr(settings, name) >= 1, where + name, getattr(settings, name), "a whole number of at least 1")
    for name in positive:
        got = getattr(settings, name)
        require(0 < got < math.inf, where + name, got, "a positive number")


@dataclass(frozen=True)
class SupervisedSettings:
    """Supervised fine-tuning on the revisions, mixed with helpful answers."""

    epochs: float = 1.5
    """Passes over the examples; more of them make a small model decline nearly everything."""
    learning_rate: float = 1e-3
    """Peak learning rate of the adapter."""
    rank: int = 16
    """Rank of the LoRA adapter on every linear layer."""
    batch_size: int = 8
    """Packed rows per update."""
    row_length: int = 256
    """Tokens per packed row."""
    benign_repeats: int = 2
    """How often each benign example that looks harmful is shown per pass, against over-refusal."""

    def __post_init__(self) -> None:
        positive = ("epochs", "learning_rate")
        require_all(self, "supervised.", counts=("rank", "batch_size"), positive=positive)
        require(self.row_length >= 2, "supervised.row_length", self.row_length, "a whole number of at least 2")
        require(
            self.benign_repeats >= 0, "supervised.benign_repeats", self.benign_repeats, "0 or a positive whole number"
        )


@dataclass(frozen=True)
class PreferenceSettings:
    """AI preferences and the preference model trained on them."""

    pairs_per_prompt: int = 1
    """Pairs of sampled responses per training prompt."""
    temperature: float = 0.8
    """Sampling temperature of the responses to compare."""
    epochs: float = 1.0
    """Passes over the pairs."""
    learning_rate: float = 5e-4
    """Peak learning rate of the preference model's adapter and head."""
    rank: int = 8
    """Rank of the preference model's adapter."""
    batch_size: int = 8
    """Pairs per update."""
    heldout_fraction: float = 0.15
    """Share of the pairs kept back to measure the preference model."""

    def __post_init__(self) -> None:
        positive = ("epochs", "learning_rate", "temperature")
        require_all(self, "preference.", counts=("pairs_per_prompt", "rank", "batch_size"), positive=positive)
        held = self.heldout_fraction
        require(0 < held < 1, "preference.heldout_fraction", held, "a number between 0 and 1")


@dataclass(frozen=True)
class ReinforcementSettings:
    """The last stage: PPO against the preference model, or DPO on the same pairs."""

    method: Literal["ppo", "dpo", "none"] = "ppo"
    """`ppo` against the preference model, `dpo` on the AI preferences, or `none`."""
    steps: int = 4
    """PPO: rollout batches."""
    batch_size: int = 64
    """PPO: responses per rollout batch."""
    learning_rate: float = 3e-4
    """Peak learning rate of the policy's adapter."""
    passes: int = 1
    """PPO: passes over each rollout batch."""
    kl_coefficient: float = 0.05
    """PPO: reward lost per nat of KL to the supervised model."""
    beta: float = 0.1
    """DPO: strength of the tie to the supervised model."""
    epochs: float = 2.0
    """DPO: passes over the pairs."""
    rank: int = 16
    """Rank of the policy's adapter."""

    def __post_init__(self) -> None:
        positive = ("learning_rate", "beta", "epochs")
        require_all(self, "reinforcement.", counts=("steps", "batch_size", "rank", "passes"), positive=positive)
        beta = self.kl_coefficient
        require(0 <= beta < math.inf, "reinforcement.kl_coefficient", beta, "0 or a positive number")


@dataclass(frozen=True)
class EndpointSettings:
    """How the critic endpoint is asked, and what it charges.

    What changes no answer (all but `dialect` and `extra`) may differ when a run goes on, so it does not compare.
    """

    concurrency: int = field(default=8, compare=False)
    """Requests in flight at once."""
    timeout: float = field(default=120.0, compare=False)
    """Seconds for a whole reply; where streamed, for each wait until its next piece."""
    retries: int = field(default=5, compare=False)
    """Further attempts after a refusal that may pass, a broken connection, a time-out or a reply that was cut."""
    longest_retry_after: float = field(default=300.0, compare=False)
    """Longest pause in seconds that the server may ask for; a longer one ends the run, which then can go on later."""
    requests_per_minute: int = field(default=0, compare=False)
    """Most attempts in any 60 seconds; 0 is no limit."""
    tokens_per_minute: int = field(default=0, compare=False)
    """Most tokens in any 60 seconds, in and out; 0 is no limit."""
    streamed: bool = field(default=False, compare=False)
    """Read answers as streams: a long one is then given up by silence, not by its length."""
    dialect: Dialect = "openai"
    """The server's names for what the API leaves open."""
    extra: str = ""
    """Further fields of every request, as a JSON object."""
    price_prompt: float | None = field(default=None, compare=False)
    """What a million tokens of prompts cost."""
    price_completion: float | None = field(default=None, compare=False)
    """What a million generated tokens cost."""
    price_cached: float | None = field(default=None, compare=False)
    """What a million tokens of prompts cost that the server had in its cache; none: as any other."""
    currency: str = field(default="USD", compare=False)
    """Of the prices."""

    def __post_init__(self) -> None:
        for name in ("price_prompt", "price_completion", "price_cached"):
            price = getattr(self, name)
            require(price is None or 0 <= price < math.inf, f"endpoint.{name}", price, "none, 0 or a positive price")
        given = (self.price_prompt is not None, self.price_completion is not None)
        require(given[0] == given[1], "endpoint.price_completion", self.price_completion, "given with price_prompt")
        try:
            self.limits()
            self.options()
        except ConfigError as error:
            raise ConfigError(f"endpoint.{error}") from None

    def limits(self) -> RemoteLimits:
        """How patiently and how fast."""
        return RemoteLimits(**{f.name: getattr(self, f.name) for f in fields(RemoteLimits) if hasattr(self, f.name)})

    def options(self) -> RemoteOptions:
        """What the server understands. Raises ConfigError where `extra` is no JSON object."""
        try:
            extra = json.loads(self.extra or "{}")
        except (ValueError, RecursionError):
            extra = None
        require(isinstance(extra, dict), "extra", self.extra, 'a JSON object, for example {"reasoning_effort": "low"}')
        return RemoteOptions(dialect=self.dialect, streamed=self.streamed, extra=extra)

    def price(self) -> Price | None:
        """What it charges, where that is known."""
        if self.price_prompt is None or self.price_completion is None:
            return None
        return Price(self.price_prompt, self.price_completion, self.price_cached, self.currency)


@dataclass(frozen=True)
class AlignConfig:
    """Constitutional AI from end to end (Bai et al. 2022), on one machine."""

    model: str = "smollm2-135m-instruct"
    """The model to align: a catalogue name, a directory, a .gguf file or a hub id. A quantised one gets its adapters
    beside the codes (QLoRA); what is exported then is plain."""
    packed: bool = False
    """Keep the Q4_0, Q4_1 and Q8_0 matrices of a GGUF file in their bits (QLoRA)."""
    name: str = "aligned"
    """Name under which the aligned model is registered."""
    constitution: Path | None = None
    """A YAML file of principles; none takes the packaged constitution."""
    prompts: Path | None = None
    """Red-team prompts of your own to train on (.txt or .jsonl); none takes the packaged training split."""
    feedback: Literal["contrast", "choice", "judge"] = "contrast"
    """How AI preferences are made; `judge` asks the critic endpoint."""
    critic_url: str | None = None
    """An OpenAI-compatible endpoint that writes critiques and revisions and judges; without, the model does so."""
    critic_model: str | None = None
    """The model's name at that endpoint."""
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)
    """How the endpoint is asked: patience, rates, dialect, prices."""
    n_prompts: int = 80
    """Training prompts of each set to use; 0 takes all."""
    n_eval: int = 104
    """Held-out prompts of each set to measure on; 0 takes all."""
    max_tokens: int = 48
    """Longest response, in tokens."""
    revisions: int = 2
    """Revisions written per response; the feedback keeps the best."""
    batch_size: int = 64
    """Prompts decoded together."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the base weights; auto takes bfloat16 where the processor multiplies it natively."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    seed: int = 0
    """Everything random derives from it."""
    supervised: SupervisedSettings = field(default_factory=SupervisedSettings)
    """Supervised stage."""
    preference: PreferenceSettings = field(default_factory=PreferenceSettings)
    """AI preferences and preference model."""
    reinforcement: ReinforcementSettings = field(default_factory=ReinforcementSettings)
    """Reinforcement stage."""

    def __post_init__(self) -> None:
        require_all(self, "", counts=("max_tokens", "revisions", "batch_size"))
        plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name) is not None and self.name != "latest"
        require(plain, "name", self.name, "letters, digits, '.', '_' and '-', not 'latest'")
        for name in ("n_prompts", "n_eval"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 (all) or a positive whole number")
        require(
            (self.critic_url is None) == (self.critic_model is None),
            "critic_model",
            self.critic_model,
            "given together with critic_url",
        )
        require(
            self.critic_url is not None or dataclasses.asdict(self.endpoint) == dataclasses.asdict(EndpointSettings()),
            "endpoint",
            "given without critic_url",
            "together with critic_url",
        )
        require(
            self.feedback != "judge" or self.critic_url is not None,
            "feedback",
            self.feedback,
            "judge only with critic_url",
        )
