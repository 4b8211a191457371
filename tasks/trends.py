"""The task that draws a model's audits in MLflow."""

from prefect import task

from gradtrail.tasks.report import trends
from gradtrail.tasks.retrying import WITH_RETRIES

record_trend = task(**WITH_RETRIES)(trends.record_trend)
