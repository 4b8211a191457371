"""The task that lists what was audited before."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.tasks.audit import audited_before

audited_output_ids = task(cache_policy=NO_CACHE)(audited_before.audited_output_ids)
