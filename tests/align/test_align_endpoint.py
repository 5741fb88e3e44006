"""The critic endpoint: asked as patiently, as fast and in the dialect that the run was told, and paid for once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from wire_server import Server, Wire, running

from alignlab.__main__ import main
from alignlab.align.config import EndpointSettings
from alignlab.align.endpoint import endpoint_account, open_endpoint
from alignlab.align.pipeline import AlignmentPipeline
from alignlab.align.resumable import generate_logged
from alignlab.core.config import from_dict, save_yaml, to_dict
from alignlab.core.errors import ConfigError
from alignlab.core.files import read_jsonl
from alignlab.core.progress import Progress
from alignlab.core.runs import Run, list_runs
from alignlab.lm.remote import Price
from alignlab.lm.types import GenerationError, SamplingParams

QUICK = {"retries": 2, "timeout": 5.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tiny_run.build_model(tmp_path_factory.mktemp("model"))
    return directory


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of the test's own, nobody's key, and no pause between attempts."""
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    for name in ("ALIGNLAB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("alignlab.lm.remote_transport.Transport._pause", lambda *_: None)
    return tmp_path / "runs"


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as found:
        yield found


def says(text: str, used: tuple[int, int] = (10, 4)) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": used[0], "completion_tokens": used[1]}}


def critic(body: dict[str, Any]) -> dict[str, Any]:
    """Names a letter when it judges, and writes a text of its own for each prompt otherwise."""
    asked = body["messages"][-1]["content"]
    return says("A" if "Answer with A or B" in asked else f"I cannot help with that, but {len(asked)} kind words can.")


def configured(model: Path, server: Server, **endpoint: Any) -> Any:
    changes = {"n_prompts": 3, "n_eval": 2, "revisions": 1, "feedback": "judge", "batch_size": 64}
    changes |= {"critic_url": server.url, "critic_model": "m", "endpoint": EndpointSettings(**QUICK | endpoint)}
    return tiny_run.tiny_config(model, "none", **changes)


def command(config: Any, path: Path) -> list[str]:
    save_yaml(config, path / "c.yaml")
    return ["align", "--config", str(path / "c.yaml")]


def test_a_run_asks_as_it_was_told_and_adds_up_what_it_cost(
    model: Path, server: Server, tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, lock = {"now": 0, "most": 0}, threading.Lock()

    def respond(wire: Wire, body: dict[str, Any], n: int) -> None:
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        time.sleep(0.02)
        with lock:
            state["now"] -= 1
        wire.whole(says("busy"), 503) if n == 2 else wire.whole(critic(body))

    server.will(respond)
    prices = {"price_prompt": 1000.0, "price_completion": 2000.0, "currency": "EUR"}
    settings = {"dialect": "vllm", "extra": '{"mark": [1]}', "concurrency": 2, **prices}
    assert main(command(configured(model, server, **settings), tmp_path)) == 0
    bodies = server.seen
    assert {body["model"] for body in bodies} == {"m"}
    assert all(body["mark"] == [1] and body["min_p"] == 0 for body in bodies), "vLLM is sent filters that are off"
    assert state["most"] == 2
    (found,) = list_runs(runs)
    totals = json.loads((found.path / "artifacts" / "endpoint.json").read_text())
    answered = len(bodies) - 1
    assert totals["requests"] == answered
    assert (totals["retried"], totals["failed"], totals["unreported"]) == (1, 0, 0)
    assert (totals["prompt_tokens"], totals["completion_tokens"]) == (10 * answered, 4 * answered)
    cost = answered * (10 * 1000 + 4 * 2000) / 1e6
    assert totals["cost"] == pytest.approx(cost)
    account = endpoint_account(Run.read(found.path))
    assert account is not None
    assert f"{answered:,} requests" in account
    assert f"{cost:.4f} EUR" in account
    assert f"endpoint  {account}" in capsys.readouterr().out
    assert account in (found.path / "report.html").read_text()
    judged = [row["text"] for i in (0, 1) for row in read_jsonl(found.path / "artifacts" / f"judgements-{i}.jsonl")]
    assert judged
    assert set(judged) == {"A"}


def test_one_sampler_serves_all_stages_so_that_its_limits_hold_for_all(
    model: Path, server: Server, tmp_path: Path
) -> None:
    config = configured(model, server, requests_per_minute=7, tokens_per_minute=9000)
    with Run.create(config, name="align", path=tmp_path / "run") as run:
        pipeline = AlignmentPipeline(config, run, Progress.silent())
        judge: Any = pipeline.feedback()
        assert pipeline.critic() is pipeline.critic() is judge.sampler.sampler is pipeline.endpoint
        assert pipeline.endpoint is not None
        assert (pipeline.endpoint.limits.requests_per_minute, pipeline.endpoint.limits.tokens_per_minute) == (7, 9000)
        assert pipeline.endpoint.limits.retries == 2


def test_a_run_that_lost_patience_goes_on_with_more_of_it_and_pays_for_nothing_twice(
    model: Path, server: Server, tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of the judge's answers never come; the same run goes on with another time-out and asks for those alone."""
    asked: list[str] = []

    def respond(wire: Wire, body: dict[str, Any], n: int) -> None:
        text = json.dumps(body["messages"])
        if "Answer with A or B" in text:
            asked.append(text)
            if slow and len(asked) <= 2:
                time.sleep(1.2)
        wire.whole(critic(body))

    slow = True
    server.will(respond)
    impatient = configured(model, server, timeout=0.4, retries=0, concurrency=1)
    assert main(command(impatient, tmp_path)) == 2
    said = capsys.readouterr().err
    assert "timed out: it was silent or unfinished for 0.4 seconds" in said
    assert "Traceback" not in said
    (found,) = list_runs(runs)
    n_before, pairs = len(server.seen), len(asked)
    assert pairs > 2
    slow = False
    asked.clear()
    assert main(command(configured(model, server, timeout=30.0, concurrency=1), tmp_path)) == 0
    assert [run.path for run in list_runs(runs)] == [found.path]
    # Each pair is asked about in both orders: of the first two were missing, the second had not been asked.
    assert len(asked) == 2 + pairs
    assert len(server.seen) == n_before + 2 + pairs
    totals = json.loads((found.path / "artifacts" / "endpoint.json").read_text())
    assert totals["failed"] == 2
    assert totals["requests"] == n_before + pairs
    # What changes answers is another run.
    capsys.readouterr()
    other = [*command(configured(model, server, dialect="vllm"), tmp_path), "--run", str(found.path)]
    assert main(other) == 2
    assert "endpoint.dialect (was 'openai', now 'vllm')" in capsys.readouterr().err


def test_answers_of_an_endpoint_outlive_the_failure_of_their_batch(server: Server, tmp_path: Path) -> None:
    def respond(wire: Wire, body: dict[str, Any], n: int) -> None:
        refused = broken and body["prompt"] == "bb"
        wire.whole({"error": "no"} if refused else {"choices": [{"text": body["prompt"] * 2}]}, 400 if refused else 200)

    broken = True
    server.will(respond)

    def run() -> list[dict[str, Any]]:
        return generate_logged(
            server.sampler(), ["a", "bb", "ccc", "dddd"], SamplingParams(max_tokens=3), tmp_path / "log.jsonl",
            batch_size=3, label="test", progress=Progress.silent(),
        )  # fmt: skip

    with pytest.raises(GenerationError, match="answered 400: no"):
        run()
    assert sorted(row["text"] for row in read_jsonl(tmp_path / "log.jsonl")) == ["aa", "cccccc"]
    broken = False
    server.seen.clear()
    assert [row["text"] for row in run()] == ["aa", "bbbb", "cccccc", "dddddddd"]
    assert sorted(body["prompt"] for body in server.seen) == ["bb", "dddd"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout": 0}, "endpoint.timeout is 0, allowed: a positive number of seconds"),
        ({"concurrency": 0}, "endpoint.concurrency is 0, allowed: a whole number of at least 1"),
        ({"retries": -1}, "endpoint.retries is -1"),
        ({"requests_per_minute": -1}, "endpoint.requests_per_minute is -1"),
        ({"dialect": "grpc"}, "endpoint.dialect is 'grpc', allowed: openai, vllm, sglang, llama.cpp"),
        ({"extra": "{"}, "endpoint.extra is '{', allowed: a JSON object"),
        ({"extra": "[1]"}, "endpoint.extra is '.1.', allowed: a JSON object"),
        ({"price_prompt": -1.0, "price_completion": 1.0}, "endpoint.price_prompt is -1.0"),
        ({"price_prompt": 1.0}, "endpoint.price_completion is None, allowed: given with price_prompt"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EndpointSettings(**settings)


def test_settings_survive_their_file_and_reach_the_sampler(model: Path, server: Server) -> None:
    given = {"concurrency": 3, "longest_retry_after": 9.0, "streamed": True, "price_prompt": 1.0, "price_cached": 0.5}
    config = configured(model, server, **given, price_completion=2.0, currency="EUR")
    assert to_dict(from_dict(type(config), to_dict(config))) == to_dict(config)
    sampler = open_endpoint(config)
    assert sampler is not None
    assert (sampler.limits.concurrency, sampler.limits.longest_retry_after, sampler.limits.timeout) == (3, 9.0, 5.0)
    assert sampler.options.streamed
    assert sampler.usage.price == Price(1.0, 2.0, 0.5, "EUR")
    assert open_endpoint(tiny_run.tiny_config(model)) is None


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--endpoint.timeout", "5"], "endpoint is 'given without critic_url', allowed: together with critic_url"),
        (["--critic-url", "localhost:1", "--critic-model", "m"], "is not a web address"),
        (["--critic-url", "http://localhost:1/v1", "--critic-model", "m", "--endpoint.retries", "-2"], "retries is -2"),
        (["--endpoint.patience", "2"], "unknown flag '--endpoint.patience'"),
    ],
)
def test_mistakes_are_told_before_there_is_a_run(
    model: Path, runs: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    assert main(["align", "--model", str(model), *flags]) == 2
    assert sentence in capsys.readouterr().err
    assert not runs.exists()


def test_a_refused_key_ends_the_run_with_one_sentence(
    model: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.will(lambda wire, body, n: wire.whole({"error": {"message": "wrong key"}}, 401))
    assert main(command(configured(model, server), tmp_path)) == 2
    said = capsys.readouterr().err
    assert "answered 401: wrong key" in said
    assert "Traceback" not in said
