"""Configuration files: YAML that names data, models, methods and seeds; every combination is a run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.robustness import data, models
from benchmarks.robustness.evaluation.settings import AttackSettings
from benchmarks.robustness.study.recipe import DataRecipe, Judged, Recipe
from benchmarks.robustness.study.training_job import CONFIGURATIONS
from benchmarks.robustness.training import TrainingConfig

FOLDER = CONFIGURATIONS
METHODS = ("natural", "at", "trades", "drelu")
WARM_UP_EPOCHS = 2

# `paper`: caps start at 100 and share the weights' learning rate; `fast`: calibrated caps, ten times the rate.
MODES: dict[str, dict[str, Any]] = {
    "paper": {"calibrate": None, "cap_lr": TrainingConfig.lr},
    "fast": {"calibrate": WARM_UP_EPOCHS, "cap_lr": 10 * TrainingConfig.lr},
}
_TOLD = {"title", "source", "columns", "pictures"}
_RUNS = {"data", "mode", "seeds", "models", "methods", "place", "training", "attacks", "by_model"}
_KEYS = _TOLD | _RUNS | {"extends", "studies"}
_METHOD_KEYS = {"method", "balancer", "beta", "init", "calibrate", "training", "models", "data"}
_TRAINING = {field.name for field in fields(TrainingConfig)} - {"seed", "method", "beta", "balancer", "eps"}
_ATTACKS = {field.name for field in fields(AttackSettings)}


@dataclass(frozen=True)
class Study:
    """What a configuration file asks for.

    Attributes:
        name: of the file.
        title: in words.
        source: the table or figure of the paper; empty for what the paper does not have.
        columns: of its table, in the paper's style; empty: all that were measured.
        pictures: names of those that show it.
        runs: one per model, method, value of a sweep, and seed.
    """

    name: str
    title: str
    source: str
    columns: tuple[str, ...]
    pictures: tuple[str, ...]
    runs: tuple[Judged, ...]


def read(name_or_path: str | Path) -> Study:
    """A configuration by its file, or by its name in ``configs/``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a key is unknown or a value is not what it must be; the message names it.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in FOLDER.glob("*.yaml")))
        raise FileNotFoundError(f"{path}: there is no such configuration; known names: {known}")
    try:
        return _study(path.stem, _text(path))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _text(path: Path) -> dict[str, Any]:
    text = yaml.safe_load(path.read_text())
    if not isinstance(text, dict):
        raise TypeError(f"got {type(text).__name__}; expected a mapping")
    _known("key", text, _KEYS)
    if "extends" in text:
        return {**_text(path.with_name(f"{text.pop('extends')}.yaml")), **text}
    return text


def _study(name: str, text: Mapping[str, Any]) -> Study:
    if "studies" in text:
        _known("key beside studies", text, _TOLD | {"studies"})
        parts = [read(part) for part in text["studies"]]
        runs = tuple(dict.fromkeys(run for part in parts for run in part.runs))
    else:
        for needed in ("data", "models", "methods", "attacks"):
            if needed not in text:
                raise ValueError(f"{needed}: missing")
        runs = tuple(run for model in text["models"] for run in _of_model(text, model))
    if "title" not in text:
        raise ValueError("title: missing")
    doubled = [run.name for index, run in enumerate(runs) if run in runs[:index]]
    if doubled:
        raise ValueError(f"methods: {doubled[0]} is asked for twice")
    columns, pictures = tuple(text.get("columns", ())), tuple(text.get("pictures", ()))
    return Study(name, text["title"], text.get("source", ""), columns, pictures, runs)


def _of_model(text: Mapping[str, Any], model: str) -> Iterator[Judged]:
    if model not in models.NAMES:
        raise ValueError(f"models: got {model!r}; expected some of {', '.join(models.NAMES)}")
    own = text.get("by_model", {}).get(model, {})
    _known("by_model key", own, {"training", "attacks"})
    attack_values = {**text["attacks"], **own.get("attacks", {})}
    _known("attacks key", attack_values, _ATTACKS)
    attacks = AttackSettings(**{key: _tupled(key, value) for key, value in attack_values.items()})
    training = {**text.get("training", {}), **own.get("training", {})}
    for seed in text.get("seeds", [0, 1, 2]):
        # The same whatever the mode and the method, so that all studies share it.
        plain = _base(text, model, seed, training)
        for recipe in _recipes(text, plain, training, attacks):
            yield Judged(recipe, plain if recipe.method != "natural" else None, attacks)


def _recipes(
    text: Mapping[str, Any], plain: Recipe, training: Mapping[str, Any], attacks: AttackSettings
) -> Iterator[Recipe]:
    mode = text.get("mode", "fast")
    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}; expected one of {', '.join(MODES)}")
    for method in text["methods"]:
        given = {"method": method} if isinstance(method, str) else dict(method)
        _known("methods key", given, _METHOD_KEYS)
        if given.get("method") not in METHODS:
            raise ValueError(f"method: got {given.get('method')!r}; expected one of {', '.join(METHODS)}")
        if plain.model not in given.get("models", [plain.model]):
            continue
        own = {**training, **given.get("training", {})}
        if given["method"] == "drelu":
            own = {"cap_lr": MODES[mode]["cap_lr"], **own}
        base = replace(_base(text, plain.model, plain.seed, own), data=_data(text["data"], given.get("data", {})))
        yield from _swept(base, plain, given, MODES[mode]["calibrate"], attacks)


def _base(text: Mapping[str, Any], model: str, seed: int, training: Mapping[str, Any]) -> Recipe:
    _known("training key", training, _TRAINING)
    for key, value in training.items():
        if key not in ("amp", "compile", "stop_patience"):
            _number(key, value)
    return Recipe(
        data=_data(text["data"]),
        model=model,
        method="natural",
        seed=seed,
        training=TrainingConfig(**{"balancer": 0.0, **training}, seed=seed),
        place=text.get("place", "head"),
    )


def _swept(
    base: Recipe, plain: Recipe, given: Mapping[str, Any], calibrate: int | None, attacks: AttackSettings
) -> Iterator[Recipe]:
    method = given["method"]
    own = {"trades": {"beta"}, "drelu": {"balancer", "init", "calibrate"}}.get(method, set())
    _known(f"{method} key", given, own | {"method", "training", "models", "data"})
    if method == "natural":
        yield base
    elif method == "at":
        # A given number of epochs from a trained model, as in the paper: nothing stops it.
        training = replace(base.training, method="at", eps=attacks.eps, stop_patience=None)
        yield replace(base, method="at", training=training, start=plain)
    elif method == "trades":
        for beta in _listed("beta", given):
            training = replace(base.training, method="trades", beta=beta, eps=attacks.eps)
            yield replace(base, method="trades", training=training)
    else:
        starts = given.get("calibrate", calibrate)
        for balancer, init in itertools.product(_listed("balancer", given), _listed("init", given, 100.0)):
            training = replace(base.training, balancer=balancer)
            yield replace(base, method="drelu", init=init, calibrate=starts, training=training)


def _data(value: Any, of_method: Mapping[str, Any] | None = None) -> DataRecipe:
    given = {**({"name": value} if isinstance(value, str) else value), **(of_method or {})}
    _known("data key", given, {field.name for field in fields(DataRecipe)})
    recipe = DataRecipe(**given)
    if recipe.name not in data.NAMES:
        raise ValueError(f"data: got {recipe.name!r}; expected one of {', '.join(data.NAMES)}")
    return recipe


def _listed(key: str, given: Mapping[str, Any], default: float | None = None) -> list[float]:
    value = given.get(key, default)
    if value is None:
        raise ValueError(f"{key}: missing for method {given['method']!r}")
    return [float(_number(key, one)) for one in (value if isinstance(value, list) else [value])]


def _number(key: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = "; YAML reads 1e-2 as text, write 1.0e-2" if isinstance(value, str) else ""
        raise TypeError(f"{key}: got {value!r}; expected a number{hint}")
    return value


def _tupled(key: str, value: Any) -> Any:
    for one in value if isinstance(value, list) else [value]:
        if key != "auto_attack":
            _number(key, one)
    return tuple(float(one) for one in value) if isinstance(value, list) else value


def _known(what: str, given: Mapping[str, Any] | Sequence[str], known: set[str]) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"{what}: got {key!r}; expected some of {', '.join(sorted(known))}")
