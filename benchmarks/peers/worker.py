"""Run in the peers' environment: one peer, one workload, one timed pass per line on standard input.

Answers are JSON lines on standard output: first {"ready": …, "covers": …} or {"unavailable": reason}, then
{"seconds": …, "examples": …} for each line read. What the peer itself prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from prepared import CannotDoError
from workloads import Workload, workloads


def main(peer: str, name: str, size: str, threads: str, products: str, share: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    if products == "oneDNN":
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    def answer(**fields: object) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    folder = Path(tempfile.mkdtemp(prefix=f"peer-{peer}-"))
    try:
        race = importlib.import_module(f"race_{peer}")
        whole = workloads(size == "tiny")[name]
        workload: Workload = replace(whole, examples=whole.examples // int(share))
        try:
            prepared = race.prepare(workload, folder)
            prepared.run()
        except CannotDoError as reason:
            answer(unavailable=str(reason))
            return
        # Whatever a peer raises, its row has to say it.
        except Exception as fault:
            lines = str(fault).strip().splitlines() or [""]
            answer(unavailable=f"{type(fault).__name__}: {lines[0][:300]}")
            return
        answer(ready=True, covers=prepared.covers)
        for _ in sys.stdin:
            begin = time.perf_counter()
            prepared.run()
            answer(seconds=time.perf_counter() - begin, examples=prepared.examples)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
