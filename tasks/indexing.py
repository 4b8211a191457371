"""The tasks of indexing: the checkpoints, the pass over the training data, the snapshot."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.tasks.index import building

list_checkpoints = task(cache_policy=NO_CACHE)(building.list_checkpoints)
build_index = task(cache_policy=NO_CACHE)(building.build_index)
publish_snapshot = task(cache_policy=NO_CACHE)(building.publish_snapshot)
