"""The task that links an audit's report in MLflow."""

from prefect import task

from gradtrail.tasks.report import linking
from gradtrail.tasks.retrying import WITH_RETRIES

link_report = task(**WITH_RETRIES)(linking.link_report)
