"""Webhooks: signed JSON to an address of the user's, tried again while it is away."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

from gradtrail.digests import sha256_bytes
from gradtrail.errors import StoreError, UsageError
from gradtrail.nouns import SEVERITIES, Severity

TIMESTAMP_HEADER = "Gradtrail-Timestamp"
SIGNATURE_HEADER = "Gradtrail-Signature"
IDEMPOTENCY_HEADER = "Idempotency-Key"
ATTEMPTS = 4
_TIMEOUT_SECONDS = 10.0
_FIRST_SERVER_FAULT = 500
_AWAY_FOR_NOW = frozenset({408, 425, 429})


@dataclass(frozen=True)
class Webhook:
    """Whom to tell about findings, as `[[webhooks]]` of the settings describes it.

    Attributes:
        url: where the JSON is posted.
        secret_env: name of the environment variable with the secret that signs it.
        least_severity: an audit without a finding of this severity or a higher one is not told.

    Raises:
        UsageError: an address that is not http or https, an unknown severity, or no name of a variable.
    """

    # pydantic reads this where settings or flow parameters are checked: an unknown key is an error and not ignored.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    url: str
    secret_env: str
    least_severity: Severity = "high"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"The webhook {parts.hostname or self.url!r} has no http or https address.", 'Write url = "https://…".'
            )
        if not self.secret_env:
            raise UsageError(
                f"The webhook at {parts.hostname} names no secret_env.",
                "Name the environment variable that holds its secret.",
            )
        if self.least_severity not in SEVERITIES:
            raise UsageError(
                f"The webhook at {parts.hostname} has an unknown least_severity {self.least_severity!r}.",
                f"It may be: {', '.join(SEVERITIES)}.",
            )

    @property
    def outlet(self) -> str:
        """A name that can be shown: the host and a digest, for the address itself may hold a token."""
        return f"webhook:{urlsplit(self.url).hostname}:{sha256_bytes(self.url.encode())[:16]}"


class AwayError(StoreError):
    """A webhook that cannot be reached, answers too late, or says that it is busy or broken: later may be better."""


class RefusedError(StoreError):
    """A webhook that was reached and does not want what it got: the same again will be refused again."""


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """HMAC-SHA256 over the timestamp, a full stop and the body; hexadecimal."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def post(
    webhook: Webhook,
    body: bytes,
    idempotency_key: str,
    *,
    timeout_seconds: float = _TIMEOUT_SECONDS,
    first_pause_seconds: float = 1.0,
) -> None:
    """Post signed JSON; where the webhook is away, again after 1, 2 and 4 seconds. Redirects are not followed.

    Raises:
        AwayError: it stayed away. RefusedError: it said no, or its secret is not set.
    """
    secret = os.environ.get(webhook.secret_env, "")
    if not secret:
        raise RefusedError(
            f"The environment variable {webhook.secret_env}, the secret of {webhook.outlet}, is not set.",
            "Set it where the audits run; the next run sends what is due.",
        )
    patience = Retrying(
        retry=retry_if_exception_type(AwayError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=first_pause_seconds) + wait_random(0, first_pause_seconds / 2),
        reraise=True,
    )
    patience(_post_once, webhook, secret, body, idempotency_key, timeout_seconds)


def _post_once(webhook: Webhook, secret: str, body: bytes, idempotency_key: str, timeout_seconds: float) -> None:
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "gradtrail",
        TIMESTAMP_HEADER: timestamp,
        SIGNATURE_HEADER: f"v1={signature(secret, timestamp, body)}",
        IDEMPOTENCY_HEADER: idempotency_key,
    }
    try:
        answer = httpx.post(webhook.url, content=body, headers=headers, timeout=timeout_seconds)
    except httpx.HTTPError as fault:
        # Not the message: it may quote the address with its token.
        raise AwayError(
            f"{webhook.outlet} cannot be reached ({type(fault).__name__}).", "The next run tries again."
        ) from fault
    status = answer.status_code
    if status >= _FIRST_SERVER_FAULT or status in _AWAY_FOR_NOW:
        raise AwayError(f"{webhook.outlet} answered {status}.", "The next run tries again.")
    if not answer.is_success:
        raise RefusedError(
            f"{webhook.outlet} refused the alert with {status}.", "Check address and secret; the next run tries again."
        )
