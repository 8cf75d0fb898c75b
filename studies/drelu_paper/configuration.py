"""Configuration files: YAML that names data, models, methods and seeds; every combination is a run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.error import MarkedYAMLError

from studies.drelu_paper import data, models, sections
from studies.drelu_paper.recipe import AttackSettings, DataRecipe, Evaluated, Recipe
from studies.drelu_paper.training import TrainingConfig

FOLDER = Path(__file__).with_name("configs")
WARM_UP_EPOCHS = 2

# `paper`: caps start at 100 and share the weights' learning rate; `fast`: calibrated caps, ten times the rate.
MODES: dict[str, dict[str, Any]] = {
    "paper": {"calibrate": None, "cap_lr": TrainingConfig.lr},
    "fast": {"calibrate": WARM_UP_EPOCHS, "cap_lr": 10 * TrainingConfig.lr},
}

_Section = TypeVar("_Section", bound=sections.Section)


@dataclass(frozen=True)
class Study:
    """What a configuration file asks for: a run per model, method, value of a sweep, and seed.

    ``columns`` are those of its table; empty: all that were measured.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    pictures: tuple[str, ...]
    runs: tuple[Evaluated, ...]


def read(name_or_path: str | Path) -> Study:
    """A configuration by its file, or by its name in ``configs/``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a key is unknown or a value is not what it must be; the message names file, key and value.
        OSError: a file cannot be read.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such configuration; {_known()}")
    return _study(path, ())


def _study(path: Path, outer: tuple[Path, ...]) -> Study:
    keys = _keys(path, ())
    kind = sections.Studies if "studies" in keys else sections.Runs
    file = _valid(kind, keys, path)
    try:
        if isinstance(file, sections.Runs):
            _check(file)
            runs = tuple(run for model in file.models for run in _of_model(file, model))
            doubled = [run.name for index, run in enumerate(runs) if run in runs[:index]]
            if doubled:
                raise ValueError(f"methods: {doubled[0]} is asked for twice")
        else:
            runs = tuple(dict.fromkeys(run for part in file.studies for run in _part(part, path, outer).runs))
        _check_names("methods" if isinstance(file, sections.Runs) else "studies", runs)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if ".yaml: " in text else f"{path}: {text}") from error
    return Study(path.stem, file.title, file.columns, file.pictures, runs)


def _part(name: str, path: Path, outer: tuple[Path, ...]) -> Study:
    part = Path(name) if Path(name).suffix else FOLDER / f"{name}.yaml"
    inside = (*outer, path.resolve())
    if part.resolve() in inside:
        raise ValueError(f"{path}: studies: got {name!r}, which holds this study itself; expected others")
    if not part.is_file():
        raise ValueError(f"{path}: studies: got {name!r}; expected a file, or a name in {FOLDER}; {_known()}")
    return _study(part, inside)


def _keys(path: Path, inner: tuple[Path, ...]) -> dict[str, Any]:
    """The keys of a file over those of the file that it extends."""
    own = _yaml(path)
    # By itself, so that a message names the file that is wrong, and not one that extends it.
    base = _valid(sections.File, own, path).extends
    own.pop("extends", None)
    if base is None:
        return own
    inside = (*inner, path.resolve())
    beside = path.parent / f"{base}.yaml"
    found = beside if beside.is_file() else FOLDER / f"{base}.yaml"
    if found.resolve() in inside:
        raise ValueError(f"{path}: extends: got {base!r}, which extends this file itself; expected another")
    if not found.is_file():
        raise ValueError(f"{path}: extends: got {base!r}; expected a name in {path.parent} or {FOLDER}; {_known()}")
    return _merged(_keys(found, inside), own)


def _yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file, in YAML 1.2: 1e-2 is a number, off is text, and no key comes twice.

    Raises:
        ValueError: the file is not text, not YAML, or not a mapping; the message names the place.
    """
    try:
        found = _whole_numbers(YAML(typ="safe", pure=True).load(path.read_bytes()))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{path}: {where}{error.problem}; expected valid YAML") from error
    except RecursionError as error:
        raise ValueError(f"{path}: got brackets nested too deeply, or a loop; expected valid YAML") from error
    # Scalars such as 2020-13-45 raise ValueError.
    except (YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {str(error).partition(chr(10))[0]}; expected valid YAML") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: got {'nothing' if found is None else type(found).__name__}; expected a mapping")
    return found


def _whole_numbers(value: Any) -> Any:
    """1e3 is a whole number too, as people write it."""
    if isinstance(value, dict):
        return {key: _whole_numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key at every depth; whatever else is given replaces what was there."""
    result = dict(base)
    for key, value in own.items():
        below = base.get(key)
        if key == "data" and isinstance(below, str):
            below = {"name": below}
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(below, value) if both else value
    return result


def _valid(kind: type[_Section], keys: Mapping[str, Any], path: Path) -> _Section:
    try:
        return kind.model_validate(keys)
    except ValidationError as error:
        raise ValueError("\n".join(f"{path}: {fault}" for fault in sections.words(error))) from error


def _known() -> str:
    return f"known names: {', '.join(sorted(path.stem for path in FOLDER.glob('*.yaml')))}"


def _check(study: sections.Runs) -> None:
    """What no key shows by itself."""
    if "eps" not in study.attacks:
        raise ValueError("attacks.eps: missing; expected the bound of the attacks, of training too")
    asked = {"by_model": tuple(study.by_model)}
    asked |= {f"methods[{index}].models": method.models or () for index, method in enumerate(study.methods)}
    for key, names in asked.items():
        for name in names:
            if name not in study.models:
                known = ", ".join(study.models)
                raise ValueError(f"{key}: got {name!r}; expected some of this study's models, {known}")
    for model in study.models:
        models.check(model, "relu", study.place)
        if not any(_is_for(method, model) for method in study.methods):
            raise ValueError(f"methods: got none for {model!r}; expected at least one for every model")
    bounds = [study.attacks, *(own.attacks for own in study.by_model.values())]
    if "bounds" in study.pictures and not any(attacks.get("bounds") for attacks in bounds):
        raise ValueError("pictures: got 'bounds' without attacks.bounds; expected the radii of a sweep there")


def _check_names(key: str, runs: Sequence[Evaluated]) -> None:
    """Tables and pictures take runs of one name and another seed together."""
    found: set[tuple[str, ...]] = set()
    for recipe in (run.recipe for run in runs):
        generated = "" if recipe.data.generated is None else " + generated"
        name = (recipe.data.name + generated, recipe.model, recipe.place, recipe.label, f"seed {recipe.seed}")
        if name in found:
            raise ValueError(
                f"{key}: got two different runs of {', '.join(name)}, which tables cannot tell apart; expected one"
            )
        found.add(name)


def _is_for(method: sections.Natural, model: str) -> bool:
    return method.models is None or model in method.models


def _of_model(study: sections.Runs, model: str) -> Iterator[Evaluated]:
    own = study.by_model.get(model, sections.OfModel())
    attacks = AttackSettings(**{**study.attacks, **own.attacks})
    training = {**study.training, **own.training}
    for seed in study.seeds:
        config = TrainingConfig(**{"balancer": 0.0, **training}, seed=seed)
        # The same whatever the mode and the method, so that all studies share it.
        plain = Recipe(_data(study.data), model, "natural", seed, config, study.place)
        most = data.TEST_SAMPLES[plain.data.name]
        if attacks.samples > most:
            raise ValueError(
                f"attacks.samples: got {attacks.samples}; expected at most the {most} tests of {plain.data.name}"
            )
        for method in study.methods:
            if _is_for(method, model):
                for recipe in _recipes(study, method, plain, attacks):
                    yield Evaluated(recipe, plain if recipe.method != "natural" else None, attacks)


def _recipes(
    study: sections.Runs, method: sections.Natural, plain: Recipe, attacks: AttackSettings
) -> Iterator[Recipe]:
    mode = MODES[study.mode]
    given = {**study.training, **study.by_model.get(plain.model, sections.OfModel()).training, **method.training}
    if isinstance(method, sections.Capped):
        given = {"cap_lr": mode["cap_lr"], **given}
    config = replace(plain.training, **given)
    base = replace(plain, data=_data({**study.data, **method.data}), method=method.method, training=config)
    if isinstance(method, sections.Trades):
        for beta in method.beta:
            yield replace(base, training=replace(config, method="trades", beta=beta, eps=attacks.eps))
    elif isinstance(method, sections.Capped):
        calibrate = method.calibrate if "calibrate" in method.model_fields_set else mode["calibrate"]
        for balancer, init in itertools.product(method.balancer, method.init):
            yield replace(base, init=init, calibrate=calibrate, training=replace(config, balancer=balancer))
    elif method.method == "at":
        # A given number of epochs from a trained model, as in the paper: nothing stops it.
        config = replace(config, method="at", eps=attacks.eps, stop_patience=None)
        yield replace(base, training=config, start=plain)
    else:
        yield base


def _data(given: Mapping[str, Any]) -> DataRecipe:
    recipe = DataRecipe(**given)
    try:
        recipe.check()
    except ValueError as error:
        raise ValueError(f"data.{error}") from error
    return recipe
