"""The tasks that look after registered versions: what they lack, what failed, what was mended."""

from prefect import task

from gradtrail.tasks.ingest import preparations
from gradtrail.tasks.retrying import WITH_RETRIES

unprepared = task(**WITH_RETRIES)(preparations.unprepared)
note_failure = task(**WITH_RETRIES)(preparations.note_failure)
note_success = task(**WITH_RETRIES)(preparations.note_success)
