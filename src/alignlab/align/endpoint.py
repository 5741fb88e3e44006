"""The endpoint that a run asks for critiques, revisions and judgements: one sampler, so that limits hold for all."""

from __future__ import annotations

from pathlib import Path

from alignlab.align.config import AlignConfig
from alignlab.core.config import from_dict
from alignlab.core.files import read_json
from alignlab.core.run_record import RunRecord
from alignlab.lm.remote import Price, RemoteSampler, UsageMeter

TOTALS = "endpoint.json"
"""Name of the artifact with what was asked, answered and charged, over all starts of a run."""


def open_endpoint(config: AlignConfig, totals: Path | None = None) -> RemoteSampler | None:
    """The sampler of the critic endpoint, None where the configuration names none; nothing is sent.

    Tokens and cost are added up in the file `totals`, and go on from what it holds.

    Raises:
        SamplerError: critic_url is no web address.
        DataError: `totals` holds something else.
    """
    if config.critic_url is None or config.critic_model is None:
        return None
    settings = config.endpoint
    return RemoteSampler(
        config.critic_url,
        config.critic_model,
        limits=settings.limits(),
        options=settings.options(),
        usage=UsageMeter(settings.price(), path=totals),
    )


def endpoint_account(run: RunRecord) -> str | None:
    """What the endpoint of a run was asked, answered and charged, in a line; None where there was none.

    Raises:
        DataError: the file with the totals holds something else.
    """
    path = run.artifacts / TOTALS
    if not path.is_file():
        return None
    meter = UsageMeter(path=path)
    charged = read_json(path).get("price")
    meter.price = None if charged is None else from_dict(Price, charged)
    return meter.report()
