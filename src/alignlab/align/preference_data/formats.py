"""Readers of the formats of others: a row of the file to one `PreferenceRow`, or a DataError that says what is wrong.

HH-RLHF (Bai et al. 2022), UltraFeedback (Cui et al. 2023), TRL's preference formats, OpenAI's comparisons of
summaries (Stiennon et al. 2020), Stanford's SHP (Ethayarajh et al. 2022), and our own judgements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from alignlab.align.preference_data.judgement import KINDS, Verdict
from alignlab.align.preference_data.rows import PreferenceRow, chosen_row, number_of
from alignlab.core.errors import DataError
from alignlab.tasks.pair_rows import EARLY, Row, dialogue, only_answer, part, sides_of, text_of

BINARIZED = ("prompt_id", "score_chosen", "score_rejected", "source")


def hh_rlhf(row: Row) -> PreferenceRow:
    """`chosen` and `rejected`, two dialogues that are the same up to the last turn, which is the assistant's."""
    sides = part(*(dialogue(text_of(row, name)) for name in ("chosen", "rejected")))
    if sides.early:
        raise DataError(EARLY)
    return chosen_row(sides.prompt, sides.chosen[0]["content"], sides.rejected[0]["content"])


def trl(row: Row) -> PreferenceRow:
    """TRL's preference rows: `prompt` explicit, or implicit in what both sides begin with; text or messages."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str) and row.get("prompt") is None:
        return chosen_row(*_shared_text(chosen, rejected), about=_extra(row))
    sides = sides_of(row)
    answers = only_answer(sides.chosen, "chosen"), only_answer(sides.rejected, "rejected")
    return chosen_row(sides.prompt, *answers, about=_extra(row))


def _shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt and answers of two texts, parted where TRL parts them: at the first difference, before a blank there."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared and chosen[shared - 1] == " ":
        shared -= 1
    if not shared:
        raise DataError("the sides share no beginning, so there is no prompt")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _extra(row: Row) -> dict[str, Any]:
    """Numbers and names beside the texts: probability, margin, scores, ids."""
    sides = ("prompt", "chosen", "rejected", "messages")
    return {k: v for k, v in row.items() if k not in sides and isinstance(v, str | int | float)}


def ultrafeedback(row: Row) -> PreferenceRow:
    """UltraFeedback as published (`instruction`, `completions`, each with a score), or a binarized one of its heirs."""
    if "completions" not in row:
        return trl(row)
    completions = row["completions"]
    if not isinstance(completions, list) or not all(isinstance(item, Mapping) for item in completions):
        raise DataError(f"field 'completions' is {completions!r:.60}, allowed: a list of objects")
    score = "overall_score" if all("overall_score" in item for item in completions) else "fine-grained_score"
    ratings = {str(i): number_of(item, score) for i, item in enumerate(completions)}
    return PreferenceRow(
        text_of(row, "instruction"),
        tuple(text_of(item, "response") for item in completions),
        Verdict("rating", ratings=ratings),
        tuple(item.get("model") for item in completions),
        about={"source": row.get("source")} if row.get("source") else {},
    )


def openai_summaries(row: Row) -> PreferenceRow:
    """Two summaries of a post (or of a news article) and the `choice` of a worker; the prompt is Stiennon's."""
    info, summaries, choice = row.get("info"), row.get("summaries"), row.get("choice")
    if not isinstance(info, Mapping) or not isinstance(summaries, list) or len(summaries) != 2:
        raise DataError("a row needs 'info' and two 'summaries'")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise DataError(f"field 'choice' is {choice!r:.60}, allowed: 0 or 1")
    if info.get("post") is not None:
        head = f"SUBREDDIT: r/{info.get('subreddit') or ''}\n\nTITLE: {info.get('title') or ''}\n\n"
        prompt = f"{head}POST: {text_of(info, 'post')}\n\nTL;DR:"
    else:
        prompt = f"Article: {text_of(info, 'article')}\n\nTL;DR:"
    texts, extra = tuple(text_of(item, "text").strip() for item in summaries), row.get("extra")
    about = {"id": info.get("id"), "split": row.get("split"), "batch": row.get("batch")}
    if isinstance(extra, Mapping):
        about["confidence"] = extra.get("confidence")
    return PreferenceRow(
        prompt, texts, Verdict("choice", choice=str(choice)), tuple(item.get("policy") for item in summaries),
        str(row["worker"]) if row.get("worker") else None, {k: v for k, v in about.items() if v is not None},
    )  # fmt: skip


def shp(row: Row) -> PreferenceRow:
    """A post and two comments on it; `labels` is 1 where the first got more votes though it was not there longer."""
    label = row.get("labels")
    if isinstance(label, bool) or label not in (0, 1):
        raise DataError(f"field 'labels' is {label!r:.60}, allowed: 0 or 1")
    texts = text_of(row, "human_ref_A"), text_of(row, "human_ref_B")
    kept = ("post_id", "domain", "score_A", "score_B", "score_ratio", "seconds_difference")
    about = {name: row[name] for name in kept if row.get(name) is not None}
    return PreferenceRow(text_of(row, "history"), texts, Verdict("choice", choice="0" if label else "1"), about=about)


def judgements(row: Row) -> PreferenceRow:
    """A row of our own export: everything that the store knows of one judgement."""
    answers, kind = row.get("answers"), row.get("kind")
    if not isinstance(answers, list) or not all(isinstance(item, Mapping) for item in answers):
        raise DataError(f"field 'answers' is {answers!r:.60}, allowed: a list of objects with text and model")
    if kind not in KINDS:
        raise DataError(f"field 'kind' is {kind!r:.60}, allowed: {', '.join(KINDS)}")
    outcome, verdict = row.get("outcome"), None
    if outcome is not None:
        verdict = _own_verdict(row, len(answers))
    about = row.get("about") or {}
    if not isinstance(about, Mapping):
        raise DataError(f"field 'about' is {about!r:.60}, allowed: an object")
    kept = ("token", "shown", "reason", "seconds", "created", "withdrawn")
    return PreferenceRow(
        row.get("prompt"),  # type: ignore[arg-type]  # it checks itself
        tuple(text_of(item, "text") for item in answers), verdict, tuple(item.get("model") for item in answers),
        row.get("annotator"), about, {"kind": kind} | {name: row[name] for name in kept if row.get(name) is not None},
    )  # fmt: skip


def _own_verdict(row: Row, count: int) -> Verdict:
    places = {str(i) for i in range(count)}
    outcome, choice, ranking, ratings = (row.get(name) for name in ("outcome", "choice", "ranking", "ratings"))
    if outcome in ("tie", "skip"):
        return Verdict(outcome)
    if outcome == "choice" and not isinstance(choice, bool) and str(choice) in places:
        return Verdict("choice", choice=str(choice))
    if outcome == "ranking" and isinstance(ranking, list) and all(isinstance(group, list) for group in ranking):
        order = tuple(tuple(str(place) for place in group) for group in ranking)
        if sorted(place for group in order for place in group) == sorted(places):
            return Verdict("ranking", ranking=order)
    if outcome == "rating" and isinstance(ratings, Mapping) and ratings and set(ratings) <= places:
        return Verdict("rating", ratings={place: number_of(ratings, place) for place in sorted(ratings)})
    raise DataError(f"outcome {outcome!r} with choice {choice!r}, ranking {ranking!r:.40}, ratings {ratings!r:.40}")


FORMATS: dict[str, Callable[[Row], PreferenceRow]] = {
    "hh-rlhf": hh_rlhf,
    "trl": trl,
    "ultrafeedback": ultrafeedback,
    "openai-summaries": openai_summaries,
    "shp": shp,
    "judgements": judgements,
}


def recognise(row: Row) -> str | None:
    """The format that a row looks like; None for none of them."""
    if {"answers", "kind"} <= row.keys():
        return "judgements"
    if {"info", "summaries"} <= row.keys():
        return "openai-summaries"
    if {"history", "human_ref_A"} <= row.keys():
        return "shp"
    if "completions" in row or ({"chosen", "rejected"} <= row.keys() and set(BINARIZED) & row.keys()):
        return "ultrafeedback"
    if {"chosen", "rejected"} <= row.keys():
        dialogue = isinstance(row["chosen"], str) and row["chosen"].lstrip("\n").startswith(("Human:", "Assistant:"))
        return "hh-rlhf" if dialogue and row.get("prompt") is None else "trl"
    return None
