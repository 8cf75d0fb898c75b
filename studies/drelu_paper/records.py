"""A record per run: one JSON line in a file of its own, so that runs on many machines never meet in a file."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import AfterValidator, BaseModel, Field, ValidationError, create_model

from benchmarks.harness.files import SCHEMA, DamagedFileError, load_document, replacing
from benchmarks.harness.machine import commit, describe_device, now, versions
from dreluop.adaptive import Evaluation
from studies.drelu_paper.recipe import REVISION, Evaluated
from studies.drelu_paper.training import History

Record = dict[str, Any]

# The first revision of the attacks with margins: its records have what these find.
MARGINS = 2

# Enough for a picture, and a thousand epochs stay small.
_DIGITS = 5


def record_of(
    evaluated: Evaluated, warm_up: History, history: History, evaluation: Evaluation, device: torch.device, threads: int
) -> Record:
    """What a run found, on what and when."""
    found = asdict(evaluation)
    del found["left_out"]
    return {
        "schema": SCHEMA,
        "name": evaluated.name,
        "label": evaluated.recipe.label,
        "recipe": asdict(evaluated.recipe),
        "baseline": evaluated.baseline.name if evaluated.baseline else None,
        "attacks": asdict(evaluated.attacks),
        "revision": REVISION,
        "date": now(),
        "device": describe_device(device),
        "threads": threads,
        "versions": versions(),
        "commit": commit(),
        "warm_up": _columns(warm_up),
        "training": _columns(history),
        "evaluation": _rounded({"paper_worst" if key == "white_box_worst" else key: found[key] for key in found}),
    }


def save(record: Record, folder: Path) -> Path:
    """Write the record; a reader finds all of it or nothing. Records of older attacks on the same run are removed."""
    path = folder / f"{record['name']}.json"
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(record, allow_nan=False) + "\n")
    written = json.loads(path.read_text())
    for other in folder.glob(f"{record['name'].rsplit('-', 1)[0]}-*.json"):
        try:
            older = other != path and _is_older(load_document(other), written)
        except (OSError, ValueError) as error:
            # The attacks on this run are done, and must not be lost to another's file.
            print(f"left where it is: {error}", file=sys.stderr)
            continue
        if older:
            other.unlink()
    return path


def _is_older(other: Record, record: Record) -> bool:
    same = all(other.get(part) == record[part] for part in ("recipe", "baseline", "attacks"))
    return same and other.get("revision", 1) < record["revision"]


def find(evaluated: Evaluated, folder: Path) -> Record | None:
    """The record of a run by the attacks of today, if it is there.

    Raises:
        DamagedFileError: the file is not the record, or not all of it.
        ValueError: it is of another schema.
    """
    return _read(evaluated.name, folder)


def newest(evaluated: Evaluated, folder: Path) -> Record | None:
    """The same by the newest attacks there are: what tables show of a run until it is evaluated again.

    Raises: as ``find``.
    """
    records = (_read(evaluated.name_at(revision), folder) for revision in range(REVISION, 0, -1))
    return next((record for record in records if record is not None), None)


def found(runs: Sequence[Evaluated], folder: Path) -> list[Record]:
    """The newest records of those runs that have one, in their order."""
    return [record for run in runs if (record := newest(run, folder)) is not None]


def is_older(record: Record) -> bool:
    """Whether the attacks have changed since."""
    return bool(record.get("revision", 1) < REVISION)


def _read(expected: str, folder: Path) -> Record | None:
    path = folder / f"{expected}.json"
    if not path.exists():
        return None
    record = cast(Record, load_document(path))
    try:
        _WHOLE.model_validate(record)
        if record.get("revision", 1) >= MARGINS:
            _OF_MARGINS.model_validate(record["evaluation"])
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise DamagedFileError(path, f"not a whole record ({key}: {fault['msg']})") from error
    if record["name"] != expected:
        raise DamagedFileError(path, f"got the record of {record['name']}")
    return record


def _mapping(**keys: Any) -> type[BaseModel]:
    """A mapping that has these keys with values of these types; a tuple is a type and a default."""
    return create_model(
        "Mapping", **{key: kind if isinstance(kind, tuple) else (kind, ...) for key, kind in keys.items()}
    )


def _with_accuracy(history: dict[str, Any]) -> dict[str, Any]:
    if "validation_accuracy" not in history:
        raise ValueError("got no validation_accuracy; expected it beside the other columns")
    return history


# What tables and pictures read of a record, of the first attacks too.
_History = dict[str, Annotated[list[float | None], Field(min_length=1)]]
_WHOLE = _mapping(
    name=str, label=str, date=str, device=dict[str, Any], versions=dict[str, str], revision=(int, 1),
    recipe=_mapping(
        data=_mapping(name=str, generated=str | None), training=_mapping(balancer=float), model=str, place=str,
        method=str, seed=int, init=float, calibrate=int | None,
    ),
    warm_up=_mapping(epochs=int, cpu_seconds=float, history=_History),
    training=_mapping(epochs=int, cpu_seconds=float, history=Annotated[_History, AfterValidator(_with_accuracy)]),
    evaluation=_mapping(
        samples=int, eps=float, accuracy=dict[str, float], paper_worst=float, worst=float, zero_gradient=float,
        caps=dict[str, float | None] | None, cw=dict[str, float], bounds=dict[str, dict[str, float]],
        cpu_seconds=dict[str, float],
    ),
)  # fmt: skip
_OF_MARGINS = _mapping(blind=float, l2_worst=float | None)


def _columns(history: History) -> dict[str, Any]:
    """A list per attribute; None where there is no number."""
    names = list(asdict(history.records[0])) if history.records else []
    return {
        "epochs": max(len(history.records) - 1, 0),
        "seconds": round(history.seconds, 2),
        "cpu_seconds": round(history.cpu_seconds, 2),
        "history": {name: _rounded(history.column(name)) for name in names},
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
