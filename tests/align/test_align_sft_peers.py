"""Fine-tuning against trl's SFTTrainer and transformers' NEFTune: same rows, same noise, same loss, same gradients."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
import transformers
from transformers.integrations.neftune import neftune_post_forward_hook

from alignlab.align.conversations import Conversation
from alignlab.align.neftune import noise_like, segment_lengths, with_neftune
from alignlab.align.sft import SFTConfig, SFTExample, encode_examples, sft
from alignlab.core.errors import ConfigError
from alignlab.core.runs import Run
from alignlab.data.packing import Row, pack
from alignlab.lm.hf_export import load_hf
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.types import Message
from alignlab.train.config import TrainConfig
from alignlab.train.language import language_model_loss

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ("What is the weather", "Yes, very", "and why is that", "because of the sea, the wind and the hills", "thanks")


def talk(turns: int, seed: int) -> list[Message]:
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed)).tolist()
    return [
        {"role": ("user", "assistant")[i % 2], "content": f"{WORDS[order[i % 5]]} {i * seed}"} for i in range(2 * turns)
    ]


TALKS = [talk(turns, seed) for seed, turns in enumerate((1, 3, 2, 1), start=1)]
CONVERSATIONS = [Conversation(m, tuple(range(1, len(m), 2))) for m in TALKS]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel, Any]:
    """The directory of a model, the model here, and the model in transformers."""
    folder = tiny_run.build_model(tmp_path_factory.mktemp("peer") / "model")
    lm = load(str(folder), dtype="float32", device="cpu")
    lm.tokenizer.chat_template = MARKED
    return folder, lm, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def stacked(rows: list[Row]) -> Row:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def gradients_as_ours(peer: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The peer's gradients under our names: saved in place of its weights, and loaded as weights."""
    with torch.no_grad():
        before = {name: p.detach().clone() for name, p in peer.named_parameters()}
        for p in peer.parameters():
            p.copy_(p.grad)
        peer.save_pretrained(folder)
        for name, p in peer.named_parameters():
            p.copy_(before[name])
    peer.zero_grad()
    found = load_hf(folder, dtype=torch.float32, device="cpu")
    return {name: p.detach() for name, p in getattr(found, "model", found).named_parameters()}


def assert_same_gradients(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-3
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
        parameter.grad = None


@pytest.mark.slow
@pytest.mark.parametrize("length", [512, 160], ids=["one row", "several rows"])
def test_loss_and_gradients_are_those_of_trl(pair: Any, tmp_path: Path, length: int) -> None:
    """trl tokenises, masks and pads the conversations itself; ours lie packed in shared rows."""
    import trl
    from datasets import Dataset

    folder, lm, peer = pair
    logging.getLogger("trl").setLevel(logging.ERROR)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = MARKED
    arguments = trl.SFTConfig(
        str(tmp_path), assistant_only_loss=True, max_length=None, per_device_train_batch_size=4, use_cpu=True,
        bf16=False, report_to=[], activation_checkpointing=False, dataset_num_proc=None,
    )  # fmt: skip
    data = Dataset.from_list([{"messages": m} for m in TALKS])
    trainer = trl.SFTTrainer(peer, args=arguments, train_dataset=data, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(peer.train(), batch)
    theirs.backward()
    sequences = encode_examples(lm, CONVERSATIONS, 512).sequences
    assert sum(sum(s.loss_mask) for s in sequences) == int((batch["labels"] != -100).sum())
    rows = pack(sequences, length)
    assert (len(rows) == 1) == (length == 512)
    ours, _ = language_model_loss(lm.model.train(), stacked(rows))
    ours.backward()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-6)
    assert_same_gradients(lm.model, gradients_as_ours(peer, tmp_path / "gradients"))


def test_noise_loss_and_gradients_are_those_of_transformers(pair: Any, tmp_path: Path) -> None:
    """One example that fills its row, so that both take one length; the noise is drawn from one seed."""
    _, lm, peer = pair
    (sequence,) = encode_examples(lm, CONVERSATIONS[1:2], 512).sequences
    batch = {key: value[None] for key, value in pack([sequence], len(sequence.tokens))[0].items()}
    labels = batch["tokens"].where(batch["loss_mask"], torch.tensor(-100))
    embeddings = peer.get_input_embeddings()
    embeddings.neftune_noise_alpha = 5.0
    handle = embeddings.register_forward_hook(neftune_post_forward_hook)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            theirs = peer.train()(batch["tokens"], labels=labels).loss
    finally:
        handle.remove()
    theirs.backward()
    quiet = float(language_model_loss(lm.model.train(), batch)[0].detach())
    with torch.random.fork_rng():
        torch.manual_seed(3)
        ours, _ = with_neftune(language_model_loss, 5.0)(lm.model, batch)
    ours.backward()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-6)
    assert abs(float(ours.detach()) - quiet) > 1e-4
    assert_same_gradients(lm.model, gradients_as_ours(peer, tmp_path / "gradients"))


def test_noise_has_the_size_of_each_example_not_of_its_row() -> None:
    """Uniform on ±alpha/sqrt(L d): bounds exact, variance alpha²/(3 L d) within five of its standard errors."""
    segments = torch.tensor([[1] * 40 + [2] * 10 + [0] * 14, [1] * 64])
    lengths = segment_lengths(segments)
    assert lengths[0, [0, 45, 63]].tolist() == [40, 10, 14]
    d, alpha = 2000, 5.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noise = noise_like(torch.zeros(2, 64, d), lengths, alpha)
    for row, place, length in ((0, slice(0, 40), 40), (0, slice(40, 50), 10), (1, slice(0, 64), 64)):
        part, bound = noise[row, place], alpha / (length * d) ** 0.5
        assert part.abs().max() <= bound
        n, variance = part.numel(), bound**2 / 3
        error = variance * (0.8 / n) ** 0.5  # of a uniform's variance: kurtosis 9/5
        assert abs(float(part.var()) - variance) < 5 * error
        assert abs(float(part.mean())) < 5 * (variance / n) ** 0.5


def test_noise_is_for_training_only_and_leaves_no_trace(pair: Any) -> None:
    _, lm, _ = pair
    (sequence,) = encode_examples(lm, CONVERSATIONS[:1], 512).sequences
    batch = {key: value[None] for key, value in pack([sequence], 64)[0].items()}
    noisy = with_neftune(language_model_loss, 50.0)
    quiet = language_model_loss(lm.model.eval(), batch)[0].detach()
    assert torch.equal(noisy(lm.model, batch)[0].detach(), quiet)
    lm.model.train()
    assert not torch.equal(noisy(lm.model, batch)[0].detach(), quiet)
    assert torch.equal(language_model_loss(lm.model, batch)[0].detach(), quiet)
    assert not lm.model.embed._forward_hooks
    assert with_neftune(language_model_loss, 0.0) is language_model_loss


def test_a_noisy_training_is_reproducible_and_goes_on_exactly(make_lm, tmp_path: Path) -> None:
    examples = [SFTExample("one", "uno"), SFTExample("two", "due")]

    def trained(folder: Path, alpha: float = 5.0) -> dict[str, torch.Tensor]:
        lm = make_lm()
        train = TrainConfig(steps=6, learning_rate=0.01, schedule="constant", checkpoint_every=2)
        config = SFTConfig(epochs=None, row_length=32, neftune_alpha=alpha, train=train, lora=None)
        run = Run.open(folder) if folder.exists() else Run.create({}, name="t", seed=0, path=folder)
        with run:
            sft(lm, examples, config, run=run)
        return {name: value.clone() for name, value in lm.model.state_dict().items()}

    whole = trained(tmp_path / "run")
    shutil.rmtree(max((tmp_path / "run" / "checkpoints" / "sft").iterdir()))  # as if killed after the fourth update
    for name, value in trained(tmp_path / "run").items():
        assert torch.equal(value, whole[name]), name
    assert not torch.equal(trained(tmp_path / "quiet", 0.0)["embed.weight"], whole["embed.weight"])


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="neftune_alpha is -1, allowed: 0"):
        SFTConfig(neftune_alpha=-1)
    with pytest.raises(ConfigError, match="the compiled embedding would go without its noise"):
        SFTConfig(neftune_alpha=5, train=TrainConfig(compile=True))
