"""The tasks of a calibration: its plan, its training, its figures."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from gradtrail.tasks.calibrate import calibrations

refuse_calibration = task(cache_policy=NO_CACHE)(calibrations.refuse_calibration)
plan_calibration = task(cache_policy=NO_CACHE)(calibrations.plan_calibration)
train_further = task(cache_policy=NO_CACHE)(calibrations.train_further)
measure_fidelity = task(cache_policy=NO_CACHE)(calibrations.measure_fidelity)
