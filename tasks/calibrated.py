"""The task that takes from calibrations what an audit needs."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.tasks.audit import resolving

resolve_audit = task(cache_policy=NO_CACHE)(resolving.resolve_audit)
