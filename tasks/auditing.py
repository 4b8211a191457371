"""The task that scores measured outputs and records the audit."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.tasks.audit import audits

score_outputs = task(cache_policy=NO_CACHE)(audits.score_outputs)
