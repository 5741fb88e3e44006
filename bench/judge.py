"""How often the refusal rules agree with responses labelled by hand; `--write` makes the packaged quality.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import alignlab.data
from alignlab.stats.classification import classify
from alignlab.tasks.refusal import declines

FOLDER = Path(alignlab.data.__file__).parent / "judge"


def main() -> None:
    rows = [json.loads(line) for line in (FOLDER / "labelled.jsonl").read_text().splitlines()]
    groups = {"all": rows} | {s: [r for r in rows if r["stage"] == s] for s in ("base", "sl-cai", "rl-cai")}
    for name, group in groups.items():
        result = classify([r["declines"] for r in group], [declines(r["response"]) for r in group])
        print(f"{name:>7}: n = {len(group)}, accuracy {result.accuracy}")
        if name == "all":
            print(f"         sensitivity {result.sensitivity}, specificity {result.specificity}")
            quality = {
                "n": len(group),
                **{k: getattr(result, k).as_dict() for k in ("accuracy", "sensitivity", "specificity")},
            }
            if "--write" in sys.argv:
                (FOLDER / "quality.json").write_text(json.dumps(quality, indent=2) + "\n")


if __name__ == "__main__":
    main()
