"""The tasks that write reports and the index of all of them, each with retries."""

from __future__ import annotations

from prefect import task

from gradtrail.tasks.report import index_pages, writing
from gradtrail.tasks.retrying import WITH_RETRIES

write_audit_report = task(**WITH_RETRIES)(writing.write_audit_report)
publish_report_index = task(**WITH_RETRIES)(index_pages.publish_report_index)
