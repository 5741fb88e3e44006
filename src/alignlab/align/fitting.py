"""Whether a model can be aligned, and how many worked examples its context holds: said before anything is computed.

A model trained here may read 512 tokens, or spell every byte; the packaged examples alone are a thousand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from alignlab.align.config import AlignConfig
from alignlab.align.constitution import Constitution
from alignlab.align.critique import CRITIQUE, REVISION, Critique, as_conversations, critique_prompts, revision_prompts
from alignlab.align.feedback import ContrastFeedback
from alignlab.core.errors import ModelError
from alignlab.core.progress import Progress
from alignlab.data.prompts import PromptRecord, heldout_text, load_prompts
from alignlab.lm.language_model import LanguageModel
from alignlab.lm.local import LocalSampler

SPELLED = 3
"""Tokens that a generated one may come back as, at worst: a byte that is no UTF-8 is read again as U+FFFD's three."""


def fit_to_model(
    constitution: Constitution,
    lm: LanguageModel,
    config: AlignConfig,
    prompts: Mapping[str, Sequence[PromptRecord]],
    progress: Progress,
) -> Constitution:
    """The constitution with as many of its worked examples as the model's context holds, of each use the first ones.

    All of them for a model of 8192 tokens, which then sees what it always saw. Raises ModelError where the model has no
    chat template or its context is too short without any example, and DataError where its vocabulary lacks a character.
    """
    if lm.tokenizer.chat_template is None:
        raise ModelError(
            f"{lm.source}: alignment talks with the model, which has no chat template; take a chat model, or put a "
            "chat_template into its tokenizer_config.json"
        )
    records = [record for name in prompts for record in (*prompts[name], *heldout(name, config))]
    check_characters(constitution, lm, records)
    longest = max((record.prompt for record in records), key=len)
    n_ctx = lm.model.config.n_ctx
    uses = [[d for d in constitution.demonstrations if d.use == use] for use in ("revision", "feedback")]
    most = max(map(len, uses))
    for count in range(most, -1, -1):
        kept = [d for d in constitution.demonstrations if any(d in use[:count] for use in uses)]
        fitted = with_demonstrations(constitution, kept)
        if max(tokens_needed(fitted, lm, config, longest, spelled=SPELLED)) <= n_ctx:
            break
    else:
        needed = max(tokens_needed(fitted, lm, config, longest))
        if needed > n_ctx:
            raise ModelError(
                f"{lm.source}: the model reads {n_ctx} tokens, alignment needs {needed} even without worked examples; "
                f"train it with --length {needed} or more, or lower max_tokens (now {config.max_tokens})"
            )
    if count < most:
        of = len(constitution.demonstrations)
        progress.say(f"the model reads {n_ctx} tokens: {len(kept)} of the {of} worked examples fit and are shown to it")
    return constitution if count == most else fitted


def with_demonstrations(constitution: Constitution, kept: Sequence[object]) -> Constitution:
    """The same constitution with only these of its demonstrations."""
    return Constitution(
        constitution.principles,
        preamble=constitution.preamble,
        opposite=constitution.opposite,
        name=constitution.name,
        demonstrations=[d for d in constitution.demonstrations if d in kept],
        judge=constitution.judge,
    )


def tokens_needed(
    constitution: Constitution, lm: LanguageModel, config: AlignConfig, prompt: str, *, spelled: int = 1
) -> Iterator[int]:
    """Tokens that answering, criticising, revising and judging take for `prompt`, with room for what is written.

    `spelled` is how many tokens a generated token may have when its text is read again.
    """
    tokenizer, local = lm.tokenizer, config.critic_url is None
    answer = spelled * config.max_tokens
    yield len(tokenizer.encode_prompt(as_conversations([prompt])[0])) + answer
    if local:
        rules = [rule for rule in constitution.principles if rule.category == "harmlessness"]
        rule = max(rules, key=lambda r: len(r.critique_request))
        (asked,) = critique_prompts(constitution, [prompt], [""], [rule])
        yield len(tokenizer.encode_prompt(asked)) + answer + CRITIQUE.max_tokens
        (asked,) = revision_prompts(constitution, [prompt], [""], [Critique(rule.id, "")])
        yield len(tokenizer.encode_prompt(asked)) + spelled * CRITIQUE.max_tokens + REVISION.max_tokens
    for context in ContrastFeedback(LocalSampler(lm), constitution).contexts:
        framed = tokenizer.encode_prompt([*context, {"role": "user", "content": prompt}])
        yield len(framed) + max(answer, spelled * REVISION.max_tokens)


def heldout(name: str, config: AlignConfig) -> Sequence[PromptRecord]:
    """The prompts of a set that stages are measured on."""
    return load_prompts(name, "heldout")[: config.n_eval or None]  # type: ignore[arg-type]


def check_characters(constitution: Constitution, lm: LanguageModel, records: Sequence[PromptRecord]) -> None:
    """DataError where the vocabulary cannot spell something that the run will read."""
    texts = [constitution.preamble, constitution.opposite, *heldout_text()]
    texts += [text for d in constitution.demonstrations for text in (d.request, d.response, d.critique, d.revision)]
    texts += [text for rule in constitution.principles for text in (rule.critique_request, rule.revision_request)]
    texts += [text for record in records for text in (record.prompt, record.reference or "")]
    lm.tokenizer.encode("".join(sorted(set("".join(texts)))))
    lm.tokenizer.encode_prompt([{"role": "system", "content": "a"}, *as_conversations(["a"])[0]])
