#!/usr/bin/env bash
# torch 2.13.0 (CPU).
# Guess: entering a TorchDispatchMode that only looks at operations costs what its own code costs.
# Seen: the first operation under such a mode imports torch._dynamo, and with it SymPy: hundreds of modules and tens of
#       megabytes, in a process that compiles nothing. A mode whose class answers _should_skip_dynamo with False, which makes
#       the wrapper that needs the compiler superfluous, loads neither.
# Source: torch/utils/_python_dispatch.py (TorchDispatchMode wraps __torch_dispatch__ by torch._disable_dynamo).
# Output: loaded by the first operation: torch._dynamo True, sympy True / told otherwise: torch._dynamo False, sympy False
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" numpy 2>/dev/null
cd "$folder"
cat > look.py <<'PY'
import sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode

told = sys.argv[1] == "told"

class Looking(TorchDispatchMode):
    if told:
        @classmethod
        def _should_skip_dynamo(cls):
            return False

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        return function(*arguments, **(named or {}))

before = {"torch._dynamo" in sys.modules, "sympy" in sys.modules}
assert before == {False}, "the behaviour changed: loaded by importing torch"
with Looking():
    torch.ones(3) + 1
print(f"torch._dynamo {'torch._dynamo' in sys.modules}, sympy {'sympy' in sys.modules}")
PY
plain=$("$folder/venv/bin/python" look.py plain); told=$("$folder/venv/bin/python" look.py told)
echo "loaded by the first operation: $plain"
echo "told otherwise: $told"
test "$plain" = "torch._dynamo True, sympy True" && test "$told" = "torch._dynamo False, sympy False" || { echo "the behaviour changed"; exit 1; }
