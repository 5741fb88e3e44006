"""The preference model: a scalar reward on a language-model trunk, trained on comparisons.

The trunk shares the base model's weight tensors (no copy is made), so that policy, reference and reward models together
cost one set of base weights plus their adapters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from alignlab.align.adapters import share_weights
from alignlab.align.batching import in_length_order
from alignlab.align.losses import bradley_terry_loss
from alignlab.align.pairs import Batch, encode_response, last_index, pad_rows
from alignlab.align.policy import evaluating
from alignlab.core.errors import DataError, ModelError, TrainingError
from alignlab.core.files import atomic_write
from alignlab.core.rng import torch_generator
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.lora import LoraConfig, add_lora
from alignlab.lm.model import GPTModel
from alignlab.lm.quant.adapted import AdaptedLinear
from alignlab.lm.quant.layers import QuantMatrix
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.types import Prompt

FORMAT = "alignlab-preference-model-1"
PROBE = "base_probe"
"""Name under which a saved model keeps a few numbers of its base, to know it again."""


class PreferenceModel(nn.Module):
    """Reward of a response: a linear head on the hidden state of its last token (Ouyang et al. 2022, section 3.5).

    With `lora` the trunk gets an adapter of its own; without, it is frozen and only the head learns. The head starts
    normal with deviation `1 / sqrt(d_model + 1)` (Stiennon et al. 2020), drawn from `seed`. `base_model` itself is not
    changed; where its own weights (not an adapter's) are trained afterwards, this trunk moves with them.
    """

    reward_mean: Tensor
    reward_deviation: Tensor

    def __init__(
        self,
        base_model: LanguageModel | GPTModel,
        *,
        lora: LoraConfig | None = None,
        tokenizer: Tokenizer | None = None,
        max_length: int | None = None,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(base_model, LanguageModel):
            tokenizer, base_model = tokenizer or base_model.tokenizer, base_model.model
        self.tokenizer, self.lora, self.batch_size = tokenizer, lora, batch_size
        self.max_length = min(max_length or base_model.config.n_ctx, base_model.config.n_ctx)
        self.trunk = share_weights(base_model)
        if lora is not None:
            add_lora(self.trunk, lora)
        width, device = base_model.config.d_model, base_model.head_weight.device
        self.head = nn.Linear(width, 1, bias=False, device=device, dtype=torch.float32)
        with torch.no_grad():
            drawn = torch.randn(1, width, generator=torch_generator(seed)) / (width + 1) ** 0.5
            self.head.weight.copy_(drawn)
        self.register_buffer("reward_mean", torch.zeros((), device=device))
        self.register_buffer("reward_deviation", torch.ones((), device=device))

    def forward(self, tokens: Int[Tensor, "batch pos"], last_index: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Raw reward of each right-padded row (prompt, response, end token), read at `last_index`."""
        return self.reward(self.features(tokens, last_index))

    def features(
        self, tokens: Int[Tensor, "batch pos"], last_index: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch d_model"]:
        """The trunk's hidden state at `last_index`."""
        if tokens.ndim != 2 or last_index.shape != tokens.shape[:1]:
            raise TrainingError(
                f"tokens have shape {tuple(tokens.shape)} and last_index {tuple(last_index.shape)}, "
                "right are (batch, pos) and (batch,)"
            )
        if bool(((last_index < 0) | (last_index >= tokens.shape[1])).any()):
            raise TrainingError(f"last_index is {last_index.tolist()}, allowed: positions 0 to {tokens.shape[1] - 1}")
        hidden = self.trunk.hidden_states(tokens)
        return hidden[torch.arange(len(tokens), device=tokens.device), last_index]

    def reward(self, features: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"]:
        """Raw reward from features, in float32 whatever the trunk computes in."""
        with torch.autocast(features.device.type, enabled=False):
            return cast(Tensor, self.head(features.float())).squeeze(-1)

    def compute_preference_loss(
        self,
        chosen: Batch,
        rejected: Batch,
        *,
        margin: Tensor | float = 0.0,
        label_probability: Tensor | float = 1.0,
    ) -> Float[Tensor, ""]:
        """Bradley-Terry loss of a batch of comparisons: `chosen[i]` was preferred to `rejected[i]`.

        Each side has `tokens` (batch, pos) and `last_index` (batch,), or `features` (batch, d_model) computed before.
        Both go through the trunk in one pass. Raises TrainingError for sides of different size, an empty batch, or
        equal sides.
        """
        better, worse = self.both_rewards(chosen, rejected)
        return bradley_terry_loss(better, worse, margin, label_probability)

    def both_rewards(self, chosen: Batch, rejected: Batch) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Raw rewards of both sides."""
        key = "features" if "features" in chosen else "tokens"
        if key not in chosen or chosen.keys() != rejected.keys():
            raise TrainingError(
                f"chosen has {sorted(chosen)} and rejected {sorted(rejected)}, both need tokens and last_index"
            )
        first, second = chosen[key], rejected[key]
        if len(first) != len(second) or len(first) == 0:
            raise TrainingError(
                f"chosen has {len(first)} rows and rejected {len(second)}, both need the same number and at least one"
            )
        if all(torch.equal(chosen[name], rejected[name]) for name in chosen):
            raise TrainingError(
                f"chosen and rejected are equal in all {len(first)} rows, so there is no preference to learn"
            )
        if key == "features":
            rewards = self.reward(torch.cat([first, second]))
        else:
            width = max(first.shape[1], second.shape[1])
            tokens = torch.cat([nn.functional.pad(side, (0, width - side.shape[1])) for side in (first, second)])
            rewards = self(tokens, torch.cat([chosen["last_index"], rejected["last_index"]]))
        better, worse = rewards.chunk(2)
        return better, worse

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " batch"]:
        """Normalised reward of each response to its prompt, on the CPU.

        Raises ModelError without a tokenizer, DataError when prompts and responses do not pair up.
        """
        raw = self.raw_scores(prompts, responses)
        return (raw - self.reward_mean.cpu()) / self.reward_deviation.cpu()

    @torch.no_grad()
    def fit_normalisation(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> None:
        """Make `score` have mean 0 and deviation 1 on these responses (Stiennon et al. 2020 take the reference's).

        Raises DataError when their rewards do not vary.
        """
        raw = self.raw_scores(prompts, responses)
        deviation = raw.std(correction=0)
        if not bool(deviation > 0):
            raise DataError(
                f"the rewards of {len(raw)} responses are all {float(raw.mean()):g}, they must vary to be normalised"
            )
        self.reward_mean.copy_(raw.mean())
        self.reward_deviation.copy_(deviation)

    def raw_scores(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[Tensor, " batch"]:
        """Rewards before normalisation, in batches of similar length, on the CPU."""
        if len(prompts) != len(responses) or not prompts:
            raise DataError(
                f"got {len(prompts)} prompts and {len(responses)} responses to score, right is one each, at least one"
            )
        rows = [self.encode(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        with torch.no_grad(), evaluating(self):
            return self.reward(self.row_features(rows)).cpu()

    def encode(self, prompt: Prompt, response: str) -> list[int]:
        """Tokens of prompt, response and end of turn."""
        if self.tokenizer is None:
            raise ModelError("this PreferenceModel has no tokenizer, pass tokenizer= or a LanguageModel to score texts")
        return encode_response(self.tokenizer, prompt, response, max_length=self.max_length)[0]

    def row_features(self, rows: Sequence[list[int]]) -> Float[Tensor, "n d_model"]:
        """Features of token rows in their order, computed in batches of similar length."""
        device = self.head.weight.device
        order, parts = in_length_order([len(row) for row in rows], self.batch_size), []
        for members in order:
            part = [rows[i] for i in members]
            parts.append(self.features(pad_rows(part).to(device), last_index([len(row) for row in part], device)))
        back = torch.tensor([i for members in order for i in members], device=device).argsort()
        return torch.cat(parts)[back]

    def save(self, directory: str | Path) -> Path:
        """Write adapter, head and normalisation, not the base weights, to one file, atomically."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.learned().items()}
        tensors[PROBE] = probe(self.trunk)
        meta = {"format": FORMAT, "lora": asdict(self.lora) if self.lora else None, "max_length": self.max_length}
        path = Path(directory) / "preference_model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save(tensors, metadata={"alignlab": json.dumps(meta)}))
        return path

    @classmethod
    def load(cls, directory: str | Path, base_model: LanguageModel | GPTModel) -> PreferenceModel:
        """The saved model on its base model; ModelError when the file is damaged or the base another."""
        path = Path(directory) / "preference_model.safetensors"
        try:
            with safe_open(path, "pt") as file:
                meta = json.loads((file.metadata() or {}).get("alignlab", "{}"))
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        except (OSError, SafetensorError, ValueError) as error:
            raise ModelError(f"cannot read the preference model {path}: {error}") from error
        if meta.get("format") != FORMAT:
            raise ModelError(f"{path} is not a preference model: its format is {meta.get('format')!r}, not {FORMAT!r}")
        lora = LoraConfig(**{**meta["lora"], "targets": tuple(meta["lora"]["targets"])}) if meta["lora"] else None
        model = cls(base_model, lora=lora, max_length=meta["max_length"])
        saved, own = tensors.pop(PROBE), probe(model.trunk)
        if saved.shape != own.shape or not torch.allclose(saved, own, rtol=2e-2, atol=1e-4):
            raise ModelError(f"{path} was trained on another base model than the one given")
        model.put_learned(tensors, str(path))
        return model

    def learned(self) -> dict[str, Tensor]:
        """Everything this model has beyond its base: trainable parameters and the normalisation."""
        found: dict[str, Tensor] = {name: p for name, p in self.named_parameters() if p.requires_grad}
        return {**found, "reward_mean": self.reward_mean, "reward_deviation": self.reward_deviation}

    @torch.no_grad()
    def put_learned(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Copy values into `learned`; ModelError when names or shapes differ."""
        own = self.learned()
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
            different = sorted(set(own) ^ set(tensors)) or [n for n in own if own[n].shape != tensors[n].shape]
            raise ModelError(f"{where} does not fit this preference model, first difference: {different[0]}")
        for name, target in own.items():
            target.copy_(tensors[name])


def probe(model: GPTModel) -> Float[Tensor, " n"]:
    """A few numbers of every original weight matrix, in float32: equal for one model whatever type it is loaded in.

    Of quantised ones their scales, and what stands beside them for good.
    """
    matrices: list[Tensor] = [
        value for name, value in model.named_parameters() if value.ndim == 2 and "lora" not in name
    ]
    for module in model.modules():
        matrices += [module.scales] if isinstance(module, QuantMatrix) else []
        matrices += [module.a, module.b] if isinstance(module, AdaptedLinear) else []
    return torch.cat([m.detach().flatten()[:: max(1, m.numel() // 16)][:16].float().cpu() for m in matrices])
