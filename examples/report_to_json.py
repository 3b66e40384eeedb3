"""A report as JSON: all numbers of a question, for a log file or a notebook.

Writes report.json into the current folder.

python examples/report_to_json.py
"""

import json
from pathlib import Path

from pyaircache import Chat, sample

page = sample()

with Chat(keep=0.10) as chat:
    report = chat.ask(page.path, page.question).report

print(report)  # for people

Path("report.json").write_text(json.dumps(report.to_dict()), encoding="utf-8")  # everything, with scores and kept sets
print(json.dumps(report.to_dict(scalars_only=True), indent=1))  # without arrays

loaded = json.loads(Path("report.json").read_text(encoding="utf-8"))
assert sum(map(len, loaded["kept"])) == report.cells_kept

print("budgets per layer:", loaded["budgets"])
print(f"distance from equal budgets, 0 to 1: {report.divergence('uniform'):.3f}")
print("most important token of each layer:", report.ranked(1).tolist())
