"""The task that measures outputs."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.tasks.audit import measuring

measure_outputs = task(cache_policy=NO_CACHE)(measuring.measure_outputs)
