"""One of several workers that share an index: measures its shard into the LanceDB folder named by each line.

Answers are JSON lines on standard output: first {"ready": true}, then {"examples": …} for each line read.
"""

from __future__ import annotations

import json
import sys

import torch
from engines import gradtrail_part
from workloads import workloads

from gradtrail.attribution.gradients.shards import Shard


def main(name: str, size: str, threads: str, shard: str) -> None:
    torch.set_num_threads(int(threads))
    measure = gradtrail_part(workloads(size == "tiny")[name], Shard.of_text(shard))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"examples": measure(line.strip())}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
