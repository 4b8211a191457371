"""The tasks of ingest, each with the patience that MLflow needs."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.tasks.ingest import taking_in
from gradtrail.tasks.retrying import WITH_RETRIES

resolve_version = task(**WITH_RETRIES)(taking_in.resolve_version)
choose_adapter = task(cache_policy=NO_CACHE)(taking_in.choose_adapter)
fetch_files = task(**WITH_RETRIES)(taking_in.fetch_files)
store_checkpoints = task(cache_policy=NO_CACHE)(taking_in.store_checkpoints)
store_manifest = task(cache_policy=NO_CACHE)(taking_in.store_manifest)
record_model_version = task(**WITH_RETRIES)(taking_in.record_model_version)
tag_version = task(**WITH_RETRIES)(taking_in.tag_version)
