"""Give committed records the names that the code uses now: `python -m benchmarks.convert_records FOLDER`. Figures stay.

Keys are renamed in the text, so that no figure is read and written again. The file of a robustness run is named after
a hash of its settings, whose keys changed too.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.robustness.study import configuration
from benchmarks.robustness.study.recipe import Evaluated, _non_defaults

KEYS = {"contender": "implementation", "addends": "bias_and_residual", "twin": "baseline", "judgement": "evaluation"}
VALUES = {"dreluop, 2-bit code": "dreluop, packed mask", "dreluop, fused, 2-bit code": "dreluop, fused, packed mask"}


def old_name(run: Evaluated, revision: int) -> str:
    given: dict[str, Any] = _non_defaults(run)
    given = {"twin" if key == "baseline" else key: value for key, value in given.items()}
    given = given if revision == 1 else {"revision": revision, "judged": given}
    return f"{run.recipe.name}-{hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:6]}"


def renamed_runs() -> dict[str, str]:
    """The new name of every run of every configuration, by the old one."""
    names = {}
    for path in sorted(Path(configuration.__file__).parent.parent.glob("configs/**/*.yaml")):
        try:
            study = configuration.read(path)
        except ValueError:  # a part that other configurations extend
            continue
        for run in study.runs:
            names |= {old_name(run, revision): run.name_at(revision) for revision in range(1, 10)}
    return names


def main(folder: Path) -> None:
    names = renamed_runs()
    for path in sorted(folder.rglob("*.json")):
        text = path.read_text()
        for old, new in KEYS.items():
            text = re.sub(rf'"{old}"(\s*):', rf'"{new}"\1:', text)
        for old, new in VALUES.items():
            text = text.replace(json.dumps(old), json.dumps(new))
        if path.stem in names:
            text = text.replace(json.dumps(path.stem), json.dumps(names[path.stem]))
            path.unlink()
        elif path.parent.name == "robustness":
            print(f"no configuration has {path.name}")
        path.with_stem(names.get(path.stem, path.stem)).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
