#!/usr/bin/env bash
# standardwebhooks 1.1.0 (the reference library of the Standard Webhooks specification).
# Guess: sign() gives one signature for one moment, whatever its zone, and takes the payload as bytes, as verify() does.
# Seen: sign() replaces the zone of the moment by UTC instead of converting it, so that 12:00+02:00 signs as 12:00 UTC; and
#       a payload of bytes is formatted into the text, so that b"{}" signs the five characters b'{}', without an error.
# Source: standardwebhooks/webhooks.py, Webhook.sign.
# Output: one moment in two zones, same signature: False; bytes are signed as their repr: True
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "standardwebhooks==1.1.0"
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
from datetime import datetime, timedelta, timezone
from standardwebhooks.webhooks import Webhook

hook = Webhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
utc = datetime(2026, 11, 30, 10, tzinfo=timezone.utc)
berlin = utc.astimezone(timezone(timedelta(hours=2)))
assert utc == berlin
same_moment = hook.sign("msg_1", utc, "{}") == hook.sign("msg_1", berlin, "{}")
as_text = hook.sign("msg_1", utc, b"{}") == hook.sign("msg_1", utc, "b'{}'")
print(f"one moment in two zones, same signature: {same_moment}; bytes are signed as their repr: {as_text}")
assert not same_moment and as_text, "the behaviour changed"
PY
