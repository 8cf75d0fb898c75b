"""Convert the JSON documents of the benchmarks to records (JSONL): `python -m benchmarks.convert_records`. Run once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import bench_compile, bench_triton_op
from benchmarks.harness.machine import DTYPES, RESULTS
from benchmarks.harness.records import SUFFIX, Record

Doc = Mapping[str, Any]
ACTIVATION = ("mode", "pass", "implementation")
SETTINGS = ("quick", "threads", "cache_bytes", "tf32", "backend")
KEPT = ("date", "device", "versions", "commit")


def _kernels(row: Doc) -> tuple[str, dict[str, Any]]:
    values = {**row, "input": row["case"]}
    if "bias_and_residual" in values:
        values["bias_and_residual"] = " and ".join(values["bias_and_residual"])
    return f"{row['case']}, {DTYPES[row['dtype']]}", values


def _scaling(row: Doc) -> tuple[str, dict[str, Any]]:
    count = row["threads"]
    threads = "" if count is None else f", {count} threads" if count > 1 else ", 1 thread"
    return f"{row['axis']}: {row['case']}, {DTYPES[row['dtype']]}{threads}", {**row, "input": row["case"]}


def _models(row: Doc) -> tuple[str, dict[str, Any]]:
    if "tries" in row:
        ended = row["tries"] >= 6 or (row["too_large"] is not None and row["too_large"] - row["batch"] <= 8)
        values = {name: value for name, value in row.items() if name != "batch"}
        case = f"{row['network']}, full, {row['precision']}, largest batch"
        return case, {**values, "largest": row["batch"], "ended": ended}
    parts = (row[name] for name in ("network", "variant", "precision", "mode", "pass"))
    return ", ".join((*parts, f"batch {row['batch']}")), dict(row)


def _compiled(row: Doc) -> tuple[str, dict[str, Any]]:
    shown = (row["network"], row.get("how", ""), row["batch"])
    known = (case for cases in bench_compile.CASES.values() for case in cases)
    case = next(case for case in known if (case.name, case.how, case.batch) == shown)
    return case.label, {"how": "", **row}


def _triton_op(row: Doc) -> tuple[str, dict[str, Any]]:
    case = bench_triton_op.Case(row["shape"][0], getattr(torch, row["dtype"]), row["between"], row["graphs"])
    device = {f"device_{name}": value for name, value in row["device"].items()}
    values = {name: value for name, value in row.items() if name != "device"}
    return case.label, {"head_start_cycles": 2_000_000, **values, **device}


def _memory(row: Doc) -> tuple[str, dict[str, Any]]:
    return row["chain"], {name: value for name, value in row.items() if name != "chain"}


def _profile(row: Doc) -> tuple[str, dict[str, Any]]:
    return "backward kernels", {**{name: value for name, value in row.items() if name != "case"}, "input": row["case"]}


def _surgery(row: Doc) -> tuple[str, dict[str, Any]]:
    values = {("wrong" if name == "failure" else name): value for name, value in row.items()}
    return row["name"], values


SUITES: dict[str, tuple[Callable[[Doc], tuple[str, dict[str, Any]]], tuple[str, ...]]] = {
    "kernels": (_kernels, ACTIVATION),
    "kernels-1-thread": (_kernels, ACTIVATION),
    "scaling": (_scaling, ACTIVATION),
    "models": (_models, ("implementation",)),
    "compiled": (_compiled, ("implementation",)),
    "triton-op": (_triton_op, ("implementation",)),
    "memory": (_memory, ("implementation", "depth")),
    "profile": (_profile, ("input", "dtype")),
    **{f"surgery-{name}": (_surgery, ()) for name in ("sweep", "monitor")},
    **{f"surgery-zoo-{name}": (_surgery, ()) for name in ("smp", "timm", "torchvision", "transformers")},
}


def convert(path: Path) -> Record:
    document = json.loads(path.read_text())
    assert not document.get("failures"), path
    suite = path.stem.replace("kernels-1-thread", "kernels")
    suite = "surgery-zoo" if suite.startswith("surgery-zoo") else suite
    case_of, key = SUITES[path.stem]
    settings = {"quick": False, "threads": None, **{name: document[name] for name in SETTINGS if name in document}}
    if "cores" in document["device"]:
        settings["threads"] = document.get("threads", 2)
    run = {**{name: document[name] for name in KEPT}, "settings": settings}
    runs = [{**run, "date": one["date"], "commit": one["commit"]} for one in document.get("earlier", [])] + [run]
    taken = {case: index for index, one in enumerate(document.get("earlier", [])) for case in one["cases"]}
    record = Record([{"id": _id(one["date"]), "suite": suite, **one} for one in runs])
    ids = [one["id"] for one in record.runs]
    for row in (*document["rows"], *document.get("largest", [])):
        case, values = case_of(row)
        if "case" in values and case_of is not _surgery:
            del values["case"]
        record.add(case, [values], key)
        record.rows[-1]["run"] = ids[taken.get(case, len(ids) - 1)]
    return record


def _id(date: str) -> str:
    return date[:19].replace("-", "").replace(":", "")


if __name__ == "__main__":
    for path in sorted(RESULTS.glob("*/*.json")):
        if path.stem in SUITES:
            convert(path).save(path.with_suffix(SUFFIX))
            path.unlink()
            print(path)
