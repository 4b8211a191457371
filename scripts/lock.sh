#!/usr/bin/env bash
# Writes requirements.lock: one exact version of everything, for every platform and Python 3.11 to 3.13.
# The accelerator libraries that some torch builds bring are left out: torch pins those itself.
set -euo pipefail
cd "$(dirname "$0")/.."
accelerators=$(python3 - <<'PY'
names = """cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn cufft cufile curand cusolver cusparse cusparselt nccl
nvjitlink nvshmem nvtx""".split()
suffixes = ["", "-cu12", "-cu13"]
print(" ".join(f"--no-emit-package nvidia-{n}{s}" for n in names for s in suffixes))
PY
)
# shellcheck disable=SC2086
uv pip compile pyproject.toml --extra test --extra lint --universal --python-version 3.11 --no-header \
  --no-annotate --no-strip-extras --quiet --constraint scripts/lock-constraints.txt \
  --no-emit-package triton --no-emit-package cuda-bindings --no-emit-package cuda-pathfinder \
  --no-emit-package cuda-toolkit $accelerators --output-file requirements.lock
