#!/usr/bin/env bash
# prefect 3.8.8: a cron schedule in a zone with summer time.
# Guess: a daily 02:30 in Europe/Berlin is skipped, or run at 03:30, on the day on which 02:30 does not exist; every quarter
#        of an hour goes on through the hour that comes twice.
# Seen: on the spring day it runs at 01:30, an hour early by the clock of the wall. In autumn the repeated hour is run once:
#       between 02:45 (+02:00) and 03:00 (+01:00) nothing runs for an hour and a quarter.
# Source: prefect/server/schemas/schedules.py (CronSchedule.get_dates).
# Output: 2027-03-28T01:30+01:00, 2027-03-29T02:30+02:00 / 02:30+02:00, 02:45+02:00, 03:00+01:00, 03:15+01:00 of 2027-10-31
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "prefect==3.8.8"
cat > "$folder/dates.py" <<'PY'
import asyncio
from datetime import datetime
from zoneinfo import ZoneInfo

from prefect.server.schemas.schedules import CronSchedule

zone = ZoneInfo("Europe/Berlin")


def show(cron, start, count):
    schedule = CronSchedule(cron=cron, timezone="Europe/Berlin")
    for date in asyncio.run(schedule.get_dates(count, start=start)):
        print(date.astimezone(zone).isoformat(timespec="minutes"))


show("30 2 * * *", datetime(2027, 3, 27, 12, tzinfo=zone), 2)
print()
show("*/15 * * * *", datetime(2027, 10, 31, 0, 20, tzinfo=ZoneInfo("UTC")), 4)
PY
"$folder/venv/bin/python" "$folder/dates.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN' || { echo "the behaviour changed"; exit 1; }
2027-03-28T01:30+01:00
2027-03-29T02:30+02:00

2027-10-31T02:30+02:00
2027-10-31T02:45+02:00
2027-10-31T03:00+01:00
2027-10-31T03:15+01:00
SEEN
