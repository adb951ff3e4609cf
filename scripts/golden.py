#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""scripts/golden.py MODEL prompt           prints the golden prompt's ids, comma separated
scripts/golden.py MODEL compare < ids   compares greedy ids; a first difference is allowed only where
                                        the two best logits are within 0.05 (greedy_gaps)"""

import json
import pathlib
import re
import sys

golden = json.loads(pathlib.Path(sys.argv[1], "golden.json").read_text())
prompt = golden["prompt_ids"]
expected = golden["greedy_ids"][len(prompt):]
if sys.argv[2] == "prompt":
    print(",".join(map(str, prompt)))
    sys.exit()
got = [int(x) for x in re.findall(r"\d+", sys.stdin.read())]
same = next((i for i, (a, b) in enumerate(zip(got, expected)) if a != b), min(len(got), len(expected)))
print(f"equal for {same} of {len(expected)} tokens", end="")
if same == len(expected):
    print()
elif same == len(got):
    sys.exit(", then nothing")
else:
    gap = golden["greedy_gaps"][same]
    print(f", then {got[same]} for {expected[same]}, whose logits are {gap} apart")
    sys.exit(gap > 0.05)
