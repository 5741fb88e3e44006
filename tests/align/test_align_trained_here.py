"""From raw text to an aligned model of one's own, by the commands alone, in Hugging Face's format and in ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignlab.__main__ import main
from alignlab.align.config import AlignConfig
from alignlab.align.constitution import Constitution
from alignlab.align.critique import CRITIQUE, REVISION, Critique, critique_prompts, revision_prompts
from alignlab.align.feedback import ContrastFeedback
from alignlab.align.fitting import fit_to_model, heldout, tokens_needed
from alignlab.core.errors import DataError, ModelError
from alignlab.core.progress import Progress
from alignlab.core.runs import Run
from alignlab.data.prompts import PromptRecord, heldout_text, load_prompts
from alignlab.lm.config import GPTConfig
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.local import LocalSampler
from alignlab.lm.model import GPTModel
from alignlab.lm.native import export_model
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.tokenizer_training import CHATML, byte_vocabulary, character_vocabulary
from alignlab.lm.types import SamplingParams

SHAPE = ["--model.d-model", "32", "--model.n-layers", "2", "--model.n-heads", "2", "--model.d-mlp", "48"]
TRAIN = ["--length", "640", "--batch-size", "2", "--train.steps", "6", "--train.warmup-steps", "2"]
KINDS: dict[str, list[str]] = {
    "llama": [],
    "gpt2": ["--model.positions", "learned", "--model.norm", "layernorm", "--model.no-gated-mlp"],
    "native": ["--model.positions", "alibi", "--model.activation", "solu", "--model.no-gated-mlp"],
}
SMALLEST = [
    "--n-prompts", "3", "--n-eval", "3", "--max-tokens", "8", "--batch-size", "3", "--revisions", "1",
    "--dtype", "float32", "--device", "cpu", "--supervised.epochs", "1", "--supervised.rank", "2",
    "--preference.epochs", "1", "--preference.rank", "2", "--reinforcement.rank", "2", "--reinforcement.steps", "1",
    "--reinforcement.batch-size", "4",
]  # fmt: skip


def command(line: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What a command printed and reported; it must succeed."""
    code = main(line)
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out, said.err


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards of the packaged constitution and its examples."""
    folder = tmp_path_factory.mktemp("text")
    source = files("alignlab.align").joinpath("constitutions")
    texts = [source.joinpath(name).read_text() for name in ("default.yaml", "fewshot.yaml")]
    (folder / "text.txt").write_text("\n".join(texts) * 2)
    line = ["tokenize", str(folder / "text.txt"), "--tokenizer", "bpe", "--vocab-size", "900"]
    assert main([*line, "--out", str(folder / "corpus")]) == 0
    return folder / "corpus"


@pytest.mark.parametrize(
    ("kind", "method"),
    [("native", "ppo"), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("gpt2", "dpo"), ("llama", "ppo")))],
)
def test_from_raw_text_to_an_aligned_model(
    kind: str, method: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = {name: tmp_path / name for name in ("pretrain", "sft", "align")}
    line = ["pretrain", str(corpus), "--name", f"{kind}-base", "--run", str(where["pretrain"])]
    _, said = command([*line, *SHAPE, *TRAIN, *KINDS[kind]], capsys)
    reason = "alignlab's own format, because positions is 'alibi', which no architecture of Hugging Face files"
    written = f"model written in {reason if kind == 'native' else 'Hugging Face format'}"
    assert said.count(written) == 1

    talk = [{"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "the miller"}]}] * 4
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))
    line = ["sft", str(tmp_path / "talk.jsonl"), "--model", f"{kind}-base", "--name", f"{kind}-chat"]
    line += ["--rank", "2", "--row-length", "2048", "--run", str(where["sft"])]  # longer than the context: cut to it
    _, said = command(line, capsys)
    assert said.count(written) == 1

    line = ["align", "--model", str(where["sft"] / "model"), "--name", f"{kind}-aligned", *SMALLEST]
    out, said = command([*line, "--reinforcement.method", method, "--run", str(where["align"])], capsys)
    assert f"alignlab chat {kind}-aligned" in out
    assert "the model reads 640 tokens: 4 of the 12 worked examples fit" in said
    assert said.count(written) == 1
    run = Run.read(where["align"])
    assert run.state == "finished"
    assert run.stages()["export"].output["format"] == ("native" if kind == "native" else "hf")
    assert "</html>" in (where["align"] / "report.html").read_text()

    models = [load(f"{kind}-{stage}", dtype="float32", device="cpu") for stage in ("base", "chat", "aligned")]
    weights = [lm.model.state_dict()["blocks.0.attn.q.weight"] for lm in models]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    asked = [[{"role": "user", "content": "who?"}]]
    for lm in models:
        assert LocalSampler(lm).generate(asked, SamplingParams(max_tokens=4))[0].tokens  # type: ignore[arg-type]
    if kind != "native":
        for lm, place in zip(models, where.values(), strict=True):
            assert_equal_in_transformers(lm, place / "model")
    out, _ = command(["eval-lm", f"{kind}-aligned", str(corpus), "--json", "--limit", "1"], capsys)
    assert json.loads(out)["bits per byte"] > 0


@torch.no_grad()
def assert_equal_in_transformers(lm: LanguageModel, directory: Path) -> None:
    """The directory gives `transformers` the same tokens and, in float32, the same logits to 1e-5."""
    conversation = [{"role": "user", "content": "Who grinds the corn?"}]
    ids = lm.tokenizer.encode_prompt(conversation)
    theirs = AutoTokenizer.from_pretrained(directory)
    rendered = theirs.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    assert theirs(rendered, add_special_tokens=False)["input_ids"] == ids
    tokens = torch.tensor([ids])
    peer = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert (peer(tokens).logits - lm.model(tokens)).abs().max() <= 1e-5


def model_of(n_ctx: int, tokenizer: Tokenizer) -> LanguageModel:
    """A fresh model of no size with this context."""
    config = GPTConfig(vocab_size=tokenizer.vocab_size, n_ctx=n_ctx, d_model=8, n_layers=1, n_heads=1, d_mlp=8)
    return LanguageModel(GPTModel(config), tokenizer, "tiny", "tiny-source")


@pytest.fixture(scope="module")
def prompts() -> dict[str, list[PromptRecord]]:
    return {name: load_prompts(name, "train")[:4] for name in ("harmful", "benign", "helpful")}  # type: ignore[arg-type]


CONFIG = AlignConfig(n_prompts=4, n_eval=4, max_tokens=8)
Prompts = dict[str, list[PromptRecord]]


def test_a_long_context_sees_every_example(prompts: Prompts, capsys: pytest.CaptureFixture[str]) -> None:
    constitution = Constitution.load()
    assert fit_to_model(constitution, model_of(8192, byte_vocabulary()), CONFIG, prompts, Progress()) is constitution
    assert capsys.readouterr().err == ""


def test_a_short_context_sees_as_many_as_fit(prompts: Prompts, capsys: pytest.CaptureFixture[str]) -> None:
    """More context, more examples; what is kept has room, and one more of each use would not have had it."""
    whole = Constitution.load()
    longest = max((r.prompt for n in prompts for r in (*prompts[n], *heldout(n, CONFIG))), key=len)
    counts = []
    for n_ctx in (700, 1400, 2100, 2800):
        lm = model_of(n_ctx, byte_vocabulary())
        fitted = fit_to_model(whole, lm, CONFIG, prompts, Progress())
        kept = len(fitted.demonstrations)
        said = capsys.readouterr().err
        assert f"the model reads {n_ctx} tokens: {kept} of the {len(whole.demonstrations)} worked examples fit" in said
        assert max(tokens_needed(fitted, lm, CONFIG, longest, spelled=3)) <= n_ctx
        assert [d for d in whole.demonstrations if d in fitted.demonstrations] == list(fitted.demonstrations)
        for context in ContrastFeedback(LocalSampler(lm), fitted).contexts:
            assert len(lm.tokenizer.encode_prompt(context)) < n_ctx
        counts.append(kept)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_room_is_made_for_everything_that_is_written(prompts: Prompts) -> None:
    """With one token a byte the lengths can be had from real prompts with texts of the longest kind in them."""
    whole, asked = Constitution.load(), "How?"
    rules = [rule for rule in whole.principles if rule.category == "harmlessness"]
    rule = max(rules, key=lambda r: len(r.critique_request))
    lm = model_of(8192, byte_vocabulary())

    def length(conversation: Any) -> int:
        return len(lm.tokenizer.encode_prompt(conversation))

    answer, critique, revision = "a" * 8, "c" * CRITIQUE.max_tokens, "r" * REVISION.max_tokens
    turn = {"role": "user", "content": asked}
    assert list(tokens_needed(whole, lm, CONFIG, asked)) == [
        length([turn]) + len(answer),
        length(critique_prompts(whole, [asked], [answer], [rule])[0]) + len(critique),
        length(revision_prompts(whole, [asked], [answer], [Critique(rule.id, critique)])[0]) + len(revision),
        *(length([*c, turn]) + len(revision) for c in ContrastFeedback(LocalSampler(lm), whole).contexts),
    ]


def test_a_character_that_only_a_held_out_text_has_is_missed_at_once(prompts: Prompts) -> None:
    """The last measurement would meet it first, after everything else."""
    everything = "".join(map(chr, range(32, 127))) + "\n" + "".join(heldout_text()) + CHATML
    for records in (load_prompts(name, part) for name in prompts for part in ("train", "heldout")):  # type: ignore[arg-type]
        everything += "".join(record.prompt + (record.reference or "") for record in records)
    for name in ("default.yaml", "fewshot.yaml"):
        everything += files("alignlab.align").joinpath("constitutions").joinpath(name).read_text()
    fit_to_model(Constitution.load(), model_of(8192, character_vocabulary([everything])), CONFIG, prompts, Progress())
    poorer = character_vocabulary([everything.replace("Z", "z")])
    assert "Z" in "".join(heldout_text())
    with pytest.raises(DataError, match="the character 'Z'"):
        fit_to_model(Constitution.load(), model_of(8192, poorer), CONFIG, prompts, Progress.silent())


def without_template(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer(tokenizer.core, tokenizer.special)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: model_of(128, byte_vocabulary()),
            ModelError,
            r"tiny-source: the model reads 128 tokens, alignment needs \d+ even without worked examples; train it with",
        ),
        (
            lambda: model_of(4096, without_template(byte_vocabulary())),
            ModelError,
            "tiny-source: alignment talks with the model, which has no chat template",
        ),
        (
            lambda: model_of(4096, character_vocabulary(["abc " + "".join(map(chr, range(32, 100)))])),
            DataError,
            r"the character .* is not in the character vocabulary",
        ),
    ],
)
def test_what_cannot_be_aligned_is_told_at_once(
    make: Callable[[], LanguageModel], error: type[Exception], message: str, prompts: Prompts
) -> None:
    with pytest.raises(error, match=message):
        fit_to_model(Constitution.load(), make(), CONFIG, prompts, Progress.silent())


def test_the_command_tells_it_before_any_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_model(model_of(64, byte_vocabulary()), tmp_path / "model")
    line = ["align", "--model", str(tmp_path / "model"), *SMALLEST, "--run", str(tmp_path / "run")]
    assert main(line) == 2
    assert "the model reads 64 tokens, alignment needs" in capsys.readouterr().err
    assert list(Run.read(tmp_path / "run").stages()) == ["setup"]


def test_the_needed_length_that_is_named_is_enough(prompts: Prompts) -> None:
    config: Any = replace(CONFIG, max_tokens=4)
    with pytest.raises(ModelError, match="alignment needs") as caught:
        fit_to_model(Constitution.load(), model_of(64, byte_vocabulary()), config, prompts, Progress.silent())
    needed = int(str(caught.value).split("alignment needs ")[1].split()[0])
    fitted = fit_to_model(Constitution.load(), model_of(needed, byte_vocabulary()), config, prompts, Progress.silent())
    assert fitted.demonstrations == ()
    with pytest.raises(ModelError, match=f"alignment needs {needed} "):
        fit_to_model(Constitution.load(), model_of(needed - 1, byte_vocabulary()), config, prompts, Progress.silent())
