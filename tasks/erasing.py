"""The task that erases payloads once their retention ends."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.tasks.govern import erasing

retain_payloads = task(cache_policy=NO_CACHE)(erasing.retain_payloads)
