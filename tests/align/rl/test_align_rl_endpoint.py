"""A reward behind a web address: batches in order, retries, and answers that are refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from alignlab.align.rl.endpoint_reward import EndpointReward
from alignlab.align.rl.rewards import Guarded, RewardError
from alignlab.core.errors import ConfigError, SamplerError
from alignlab.lm.remote_limits import RemoteLimits


class Service(BaseHTTPRequestHandler):
    """Scores by length; what it is asked, and how often it is to fail first, are on its server."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)  # type: ignore[attr-defined]
        failing = len(self.server.asked) <= self.server.failures  # type: ignore[attr-defined]
        answer = self.server.answer or {"scores": [len(text) for text in body["responses"]]}  # type: ignore[attr-defined]
        data = json.dumps(answer).encode()
        self.send_response(503 if failing else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.asked, server.failures, server.answer = [], 0, None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


QUICK = RemoteLimits(timeout=5, retries=2, first_wait=0.01)


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/score"


def test_scores_come_back_in_order_after_a_refusal(service) -> None:
    service.failures = 1
    reward = EndpointReward(address(service), limits=QUICK, batch_size=2)
    assert reward.score(["p", "q", "r"], ["a", "bbb", "cc"]).tolist() == [1.0, 3.0, 2.0]
    assert [body["responses"] for body in service.asked] == [["a", "bbb"], ["a", "bbb"], ["cc"]]
    assert service.asked[-1]["prompts"] == ["r"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"scores": [1.0]}, "answered 2 responses with 1 scores"),
        ({"rewards": [1.0, 2.0]}, "answered 2 responses with the keys rewards"),
        ({"scores": [1.0, None]}, "gave None for response 1"),
        ({"scores": [1.0, "good"]}, "gave 'good' for response 1"),
        ({"scores": [1.0, float("inf")]}, "the reward of response 1 is inf"),
    ],
)
def test_answers_without_good_scores_are_refused(service, answer: dict, message: str) -> None:
    service.answer = answer
    with pytest.raises(RewardError, match=message):
        EndpointReward(address(service), limits=QUICK).score(["p", "q"], ["a", "b"])


def test_an_endpoint_that_is_not_there(service) -> None:
    with pytest.raises(SamplerError, match="not a web address"):
        EndpointReward("score me")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        EndpointReward(address(service), batch_size=0)
    service.failures = 99
    with pytest.raises(RewardError, match=r"raised EndpointError.*answered 503.*one by one, response 0 \('a'\) raises"):
        Guarded(EndpointReward(address(service), limits=QUICK)).score(["p"], ["a"])
