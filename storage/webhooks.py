"""Webhooks: signed JSON to an address of the user's, tried again while it is away."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import urlsplit

import standardwebhooks
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

from gradtrail.digests import sha256_bytes
from gradtrail.errors import StoreError, UsageError
from gradtrail.nouns import SEVERITIES, Severity

TIMESTAMP_HEADER = "Gradtrail-Timestamp"
SIGNATURE_HEADER = "Gradtrail-Signature"
IDEMPOTENCY_HEADER = "Idempotency-Key"
ATTEMPTS = 4
_FROM_ENVIRONMENT = "env:"
_BASE64_SECRET = "whsec_"  # noqa: S105 - how the specification marks one
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TIMEOUT_SECONDS = 10.0
_FIRST_SERVER_FAULT = 500
_AWAY_FOR_NOW = frozenset({408, 425, 429})


class WebhookConfigError(UsageError, ValueError):
    """A webhook that cannot be meant; a ValueError too, so that settings name the table it stands in."""


@dataclass(frozen=True)
class Webhook:
    """Whom to tell about findings, as `[[webhooks]]` of the settings describes it.

    Attributes:
        url: where the JSON is posted. `env:NAME` reads it from a variable of the environment when something is sent, so
            that no token in it is kept with the settings or among the parameters of a flow.
        secret_env: name of the environment variable with the secret that signs it.
        least_severity: an audit without a finding of this severity or a higher one is not told.

    Raises:
        WebhookConfigError: an address that is no http or https, an unknown severity, or no secret_env.
    """

    # pydantic reads this where settings or flow parameters are checked: an unknown key is an error and not ignored.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    url: str
    secret_env: str
    least_severity: Severity = "high"

    def __post_init__(self) -> None:
        if self._variable is None:
            place = urlsplit(self.url).hostname or repr(self.url)
            usable = _is_address(self.url)
        else:
            place = self.url
            usable = bool(_VARIABLE.fullmatch(self._variable))
        if not usable:
            raise WebhookConfigError(
                f"The webhook {place} has no http or https address.",
                'Write url = "https://…", or url = "env:NAME" for the variable that holds the address.',
            )
        if not self.secret_env:
            raise WebhookConfigError(
                f"The webhook at {place} names no secret_env.",
                "Name the environment variable that holds its secret.",
            )
        if self.least_severity not in SEVERITIES:
            raise WebhookConfigError(
                f"The webhook at {place} has an unknown least_severity {self.least_severity!r}.",
                f"It may be: {', '.join(SEVERITIES)}.",
            )

    @property
    def outlet(self) -> str:
        """A name that can be shown, for the address may hold a token: the host and a digest, or the variable."""
        return _outlet_of(self.url) if self._variable is None else f"webhook:{self.url}"

    @property
    def outlets(self) -> tuple[str, ...]:
        """Every name under which alerts may be due to it: those from before its address went into a variable too."""
        address = self._address()
        return (self.outlet, *([_outlet_of(address)] if self._variable is not None and _is_address(address) else []))

    def resolved_url(self) -> str:
        """The address, read from the environment where `url` says so.

        Raises:
            RefusedError: the variable is not set, or holds no http or https address; its value is not shown.
        """
        address = self._address()
        if not _is_address(address):
            found = "holds no http or https address" if address else "is not set"
            raise RefusedError(
                f"The environment variable {self._variable}, the address of {self.outlet}, {found}.",
                "Set it where the audits run; the next run sends what is due.",
            )
        return address

    @property
    def _variable(self) -> str | None:
        return self.url.removeprefix(_FROM_ENVIRONMENT) if self.url.startswith(_FROM_ENVIRONMENT) else None

    def _address(self) -> str:
        return self.url if self._variable is None else os.environ.get(self._variable, "")


class AwayError(StoreError):
    """A webhook that cannot be reached, answers too late, or says that it is busy or broken: later may be better."""


class RefusedError(StoreError):
    """A webhook that was reached and does not want what it got: the same again will be refused again."""


def _is_address(text: str) -> bool:
    import httpx

    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)


def _outlet_of(address: str) -> str:
    return f"webhook:{urlsplit(address).hostname}:{sha256_bytes(address.encode())[:16]}"


def signed_headers(key: bytes, message_id: str, sent_at: datetime, body: bytes) -> dict[str, str]:
    """The headers that prove who sent a body and when, by the Standard Webhooks specification (standardwebhooks.com).

    Args:
        key: what both sides know.
        message_id: the same for every repeat of one message.
        sent_at: with its time zone.
        body: UTF-8.
    """
    sent_at = sent_at.astimezone(UTC)  # the library takes the clock's digits for UTC, whatever zone stands beside them
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": standardwebhooks.Webhook(key).sign(message_id, sent_at, body.decode()),
    }


def _headers_of_0_2(secret: str, timestamp: str, body: bytes) -> dict[str, str]:
    """What receivers from before Standard Webhooks verify: hexadecimal HMAC-SHA256 over timestamp, full stop, body."""
    signature = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return {TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: f"v1={signature}"}


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
        AwayError: it stayed away. RefusedError: it said no, or its address or secret is not set or is none.
    """
    address = webhook.resolved_url()
    secret = os.environ.get(webhook.secret_env, "")
    if not secret:
        raise RefusedError(
            f"The environment variable {webhook.secret_env}, the secret of {webhook.outlet}, is not set.",
            "Set it where the audits run; the next run sends what is due.",
        )
    key = _key(secret, webhook)
    patience = Retrying(
        retry=retry_if_exception_type(AwayError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=first_pause_seconds) + wait_random(0, first_pause_seconds / 2),
        reraise=True,
    )

    def attempt() -> None:
        headers = signed_headers(key, idempotency_key, datetime.now(UTC), body)
        headers |= _headers_of_0_2(secret, headers["webhook-timestamp"], body)
        headers |= {"Content-Type": "application/json", "User-Agent": "gradtrail", IDEMPOTENCY_HEADER: idempotency_key}
        _post_once(webhook.outlet, address, headers, body, timeout_seconds)

    patience(attempt)


def _key(secret: str, webhook: Webhook) -> bytes:
    """The bytes that sign: what base64 stands for after whsec_, or else the text itself."""
    if not secret.startswith(_BASE64_SECRET):
        return secret.encode()
    try:
        key = base64.b64decode(secret.removeprefix(_BASE64_SECRET), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise RefusedError(
            f"The environment variable {webhook.secret_env}, the secret of {webhook.outlet}, has no base64 after "
            f"{_BASE64_SECRET}.",
            "Copy the secret anew, or choose one that does not begin so; the next run sends what is due.",
        )
    return key


def _post_once(outlet: str, address: str, headers: dict[str, str], body: bytes, timeout_seconds: float) -> None:
    import httpx

    try:
        answer = httpx.post(address, content=body, headers=headers, timeout=timeout_seconds)
    except httpx.HTTPError as fault:
        # Not the message: it may quote the address with its token.
        raise AwayError(f"{outlet} cannot be reached ({type(fault).__name__}).", "The next run tries again.") from fault
    status = answer.status_code
    if status >= _FIRST_SERVER_FAULT or status in _AWAY_FOR_NOW:
        raise AwayError(f"{outlet} answered {status}.", "The next run tries again.")
    if not answer.is_success:
        raise RefusedError(
            f"{outlet} refused the alert with {status}.", "Check address and secret; the next run tries again."
        )
