#!/usr/bin/env bash
# Makes the work pool, writes the schedules of gradtrail.toml into Prefect, and works: what the container `worker` runs.
# Without containers the same three commands do, in the folder of gradtrail.toml, with PREFECT_API_URL set.
set -euo pipefail
# With huge pages, as `gradtrail serve` runs flows, large indexes of float32 are scored in half of the time.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
# Runs take all but names from the settings of this host, in whatever folder they start.
export GRADTRAIL_SETTINGS_FILE=${GRADTRAIL_SETTINGS_FILE:-$PWD/gradtrail.toml}
pool=${GRADTRAIL_POOL:-gradtrail}
prefect work-pool create --overwrite --type process "$pool"
plan=$(mktemp --suffix=.yaml)
gradtrail deployments --pool "$pool" > "$plan"
prefect --no-prompt deploy --all --prefect-file "$plan"
exec prefect worker start --pool "$pool" --type process
