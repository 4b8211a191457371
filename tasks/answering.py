"""The task that answers MLflow traces."""

from prefect import task

from gradtrail.tasks.alert import trace_answers
from gradtrail.tasks.retrying import WITH_RETRIES

answer_traces = task(**WITH_RETRIES)(trace_answers.answer_traces)
