"""Configuration files: YAML that names data, models, methods and seeds; every combination is a run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dreluop.adaptive.evaluation.budget import AttackSettings
from studies.drelu_paper import data, models, schema, yaml_file
from studies.drelu_paper.recipe import DataRecipe, Evaluated, Recipe
from studies.drelu_paper.training import TrainingConfig
from studies.drelu_paper.training_job import CONFIGURATIONS

FOLDER = CONFIGURATIONS
WARM_UP_EPOCHS = 2

# `paper`: caps start at 100 and share the weights' learning rate; `fast`: calibrated caps, ten times the rate.
MODES: dict[str, dict[str, Any]] = {
    "paper": {"calibrate": None, "cap_lr": TrainingConfig.lr},
    "fast": {"calibrate": WARM_UP_EPOCHS, "cap_lr": 10 * TrainingConfig.lr},
}

_Section = TypeVar("_Section", bound=schema.Section)


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
    text = _text(path, ())
    if "studies" in text:
        whole: schema.Runs | schema.Studies = _valid(schema.Studies, text, path)
        runs = tuple(dict.fromkeys(run for part in whole.studies for run in _part(part, path, outer).runs))
        try:
            _check_names("studies", runs)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    else:
        whole = _valid(schema.Runs, text, path)
        try:
            _check(whole)
            runs = tuple(run for model in whole.models for run in _of_model(whole, model))
            doubled = [run.name for index, run in enumerate(runs) if run in runs[:index]]
            if doubled:
                raise ValueError(f"methods: {doubled[0]} is asked for twice")
            _check_names("methods", runs)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return Study(path.stem, whole.title, whole.source, whole.columns, whole.pictures, runs)


def _part(name: str, path: Path, outer: tuple[Path, ...]) -> Study:
    part = Path(name) if Path(name).suffix else FOLDER / f"{name}.yaml"
    inside = (*outer, path.resolve())
    if part.resolve() in inside:
        raise ValueError(f"{path}: studies: got {name!r}, which holds this study itself; expected others")
    if not part.is_file():
        raise ValueError(f"{path}: studies: got {name!r}; expected a file, or a name in {FOLDER}; {_known()}")
    return _study(part, inside)


def _text(path: Path, inner: tuple[Path, ...]) -> dict[str, Any]:
    """The keys of a file over those of the file that it extends."""
    own = yaml_file.read(path)
    # By itself, so that a message names the file that is wrong, and not one that extends it.
    base = _valid(schema.File, own, path).extends
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
    return _merged(_text(found, inside), own)


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


def _valid(kind: type[_Section], text: Mapping[str, Any], path: Path) -> _Section:
    try:
        return kind.model_validate(text)
    except ValidationError as error:
        raise ValueError("\n".join(f"{path}: {fault}" for fault in schema.words(error))) from error


def _known() -> str:
    return f"known names: {', '.join(sorted(path.stem for path in FOLDER.glob('*.yaml')))}"


def _check(study: schema.Runs) -> None:
    """What no key shows by itself."""
    if "eps" not in study.attacks.given():
        raise ValueError("attacks.eps: missing; expected the bound of the attacks, of training too")
    for key, names in (
        ("by_model", tuple(study.by_model)),
        *((f"methods[{index}].models", method.models or ()) for index, method in enumerate(study.methods)),
    ):
        for name in names:
            if name not in study.models:
                raise ValueError(
                    f"{key}: got {name!r}; expected some of this study's models, {', '.join(study.models)}"
                )
    for model in study.models:
        models.check(model, "relu", study.place)
        if not any(_is_for(method, model) for method in study.methods):
            raise ValueError(f"methods: got none for {model!r}; expected at least one for every model")
    bounds = [study.attacks, *(own.attacks for own in study.by_model.values())]
    if "bounds" in study.pictures and not any(attacks.given().get("bounds") for attacks in bounds):
        raise ValueError("pictures: got 'bounds' without attacks.bounds; expected the radii of a sweep there")


def _check_names(key: str, runs: Sequence[Evaluated]) -> None:
    """Tables and pictures take runs of one name and another seed together."""
    found: set[tuple[str, ...]] = set()
    for run in runs:
        recipe = run.recipe
        data = recipe.data.name + ("" if recipe.data.generated is None else " + generated")
        name = (data, recipe.model, recipe.place, recipe.label, f"seed {recipe.seed}")
        if name in found:
            raise ValueError(
                f"{key}: got two different runs of {', '.join(name)}, which tables cannot tell apart; expected one"
            )
        found.add(name)


def _is_for(method: schema.Method, model: str) -> bool:
    return method.models is None or model in method.models


def _of_model(study: schema.Runs, model: str) -> Iterator[Evaluated]:
    own = study.by_model.get(model, schema.OfModel())
    attacks = AttackSettings(**{**study.attacks.given(), **own.attacks.given()})
    training = {**study.training.given(), **own.training.given()}
    for seed in study.seeds:
        # The same whatever the mode and the method, so that all studies share it.
        plain = _base(study, model, seed, training)
        _check_samples(attacks, plain.data)
        for method in study.methods:
            if _is_for(method, model):
                for recipe in _recipes(study, method, plain, training, attacks):
                    yield Evaluated(recipe, plain if recipe.method != "natural" else None, attacks)


def _check_samples(attacks: AttackSettings, recipe: DataRecipe) -> None:
    most = data.TEST_SAMPLES[recipe.name]
    if attacks.samples > most:
        raise ValueError(f"attacks.samples: got {attacks.samples}; expected at most the {most} tests of {recipe.name}")


def _base(study: schema.Runs, model: str, seed: int, training: Mapping[str, Any]) -> Recipe:
    return Recipe(
        data=_data(study.data),
        model=model,
        method="natural",
        seed=seed,
        training=TrainingConfig(**{"balancer": 0.0, **training}, seed=seed),
        place=study.place,
    )


def _recipes(
    study: schema.Runs, method: schema.Method, plain: Recipe, training: Mapping[str, Any], attacks: AttackSettings
) -> Iterator[Recipe]:
    mode = MODES[study.mode]
    own = {**training, **method.training.given()}
    if isinstance(method, schema.Capped):
        own = {"cap_lr": mode["cap_lr"], **own}
    base = replace(_base(study, plain.model, plain.seed, own), data=_data(study.data, method.data))
    if isinstance(method, schema.Natural):
        yield base
    elif isinstance(method, schema.Adversarial):
        # A given number of epochs from a trained model, as in the paper: nothing stops it.
        config = replace(base.training, method="at", eps=attacks.eps, stop_patience=None)
        yield replace(base, method="at", training=config, start=plain)
    elif isinstance(method, schema.Trades):
        for beta in method.beta:
            config = replace(base.training, method="trades", beta=beta, eps=attacks.eps)
            yield replace(base, method="trades", training=config)
    elif isinstance(method, schema.Capped):
        calibrate = method.given().get("calibrate", mode["calibrate"])
        for balancer, init in itertools.product(method.balancer, method.init):
            config = replace(base.training, balancer=balancer)
            yield replace(base, method="drelu", init=init, calibrate=calibrate, training=config)


def _data(*sections: schema.Section) -> DataRecipe:
    try:
        return DataRecipe(**{key: value for section in sections for key, value in section.given().items()})
    except ValueError as error:
        raise ValueError(f"data.{error}") from error
