"""Counts recorded steps by kind, and those that are recorded twice: `swarmd log show --json | python3 count.py`."""

import json
import sys
from collections import Counter

kinds, records = Counter(), Counter()
for line in sys.stdin:
    event = json.loads(line)["event"]
    if event["type"] == "swarmd.task.step.v1":
        kinds[event["data"]["kind"]] += 1
        records[event["subject"], event["data"]["key"]] += 1

for kind in sorted(kinds):
    print(f"{kind:<12} {kinds[kind]}")
print(f"{'twice':<12} {sum(count > 1 for count in records.values())}")
