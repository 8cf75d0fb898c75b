"""What a configuration file may hold, as pydantic models, and the words of its errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar

import pydantic.dataclasses
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, Strict
from pydantic_core import ErrorDetails, PydanticCustomError, ValidationError

from studies.drelu_paper import models
from studies.drelu_paper.recipe import AttackSettings, DataRecipe
from studies.drelu_paper.training import TrainingConfig

T = TypeVar("T")

# The columns of a paper-style table, in the paper's order, and their headings.
PAPER_COLUMNS = {
    "clean": "clean", "fgsm": "FGSM", "pgd": "PGD", "apgd_ce": "APGD-CE", "apgd_dlr": "APGD-DLR", "square": "Square",
    "cw_l2": "CW-L2", "auto_attack": "AutoAttack",
}  # fmt: skip
PICTURES = ("balancer", "bounds", "initial_cap", "trajectory")
METHODS = ("natural", "at", "trades", "drelu")
# Far below torch's limits, so that sums, such as that of a seed and a batch's number, are valid too.
LARGEST = 2**31 - 1
# Of a value in a message, in characters.
LONGEST_VALUE = 80


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _some(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("got an empty list; expected at least one value")
    return values


def _different(values: tuple[T, ...]) -> tuple[T, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"got {value!r} twice; expected values that differ")
    return values


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError(f"got {value!r}; expected a name without the character 0")
    return value


def _known_keys(value: Any, known: Iterable[str]) -> None:
    if not isinstance(value, Mapping):
        raise PydanticCustomError("mapping", "mapping")
    for key in value:
        if key not in known:
            words = {"key": _shown(key), "known": ", ".join(sorted(known))}
            raise PydanticCustomError("unknown_key", "key: got {key}; expected some of {known}", words)


def some_of(configured: type, without: Iterable[str] = ()) -> Any:
    """The type of a mapping with some of a dataclass's fields: checked as they are there, and given as a dict."""
    known = [field.name for field in fields(configured) if field.name not in without]
    strict = pydantic.dataclasses.dataclass(configured, frozen=True, config=ConfigDict(strict=True))

    def check(value: Any) -> dict[str, Any]:
        _known_keys(value, known)
        for key, one in value.items():
            if isinstance(one, int) and one > LARGEST:
                raise ValueError(f"{key}: got {_shown(one)}; expected at most {LARGEST}")
        made = strict(**{key: tuple(one) if isinstance(one, list) else one for key, one in value.items()})
        return {key: getattr(made, key) for key in value}

    return Annotated[dict[str, Any], PlainValidator(check)]


Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# YAML has lists only; the members are checked strictly all the same.
Listed = Annotated[tuple[T, ...], Strict(False), AfterValidator(_some), AfterValidator(_different)]
Numbers = Annotated[Listed[Number], BeforeValidator(_listed)]
FileName = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
Title = Annotated[str, Field(min_length=1)]
ModelName = Literal[tuple(models.NAMES)]
# eps is that of the attacks; the others are given by the method.
Training = some_of(TrainingConfig, without=("seed", "method", "beta", "balancer", "eps"))
Attacks = some_of(AttackSettings)
DataKeys = some_of(DataRecipe)
Data = Annotated[DataKeys, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]


class Section(BaseModel):
    """A mapping of a configuration file."""

    model_config = ConfigDict(strict=True, frozen=True)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        _known_keys(value, cls.model_fields)
        return value


class Natural(Section):
    method: Literal["natural", "at"]
    training: Training = {}
    models: Listed[ModelName] | None = None
    data: DataKeys = {}


class Trades(Natural):
    method: Literal["trades"]
    beta: Numbers


class Capped(Natural):
    method: Literal["drelu"]
    balancer: Numbers
    init: Numbers = (100.0,)
    calibrate: Annotated[int, Field(ge=1)] | None = None


def _method(value: Any) -> Natural:
    value = {"method": value} if isinstance(value, str) else value
    if not isinstance(value, Mapping) or "method" not in value:
        raise PydanticCustomError("method", "method")
    name = value["method"]
    if name not in METHODS:
        known = ", ".join(map(repr, METHODS))
        raise ValueError(f"method: got {_shown(name)}; expected one of {known}")
    return {"trades": Trades, "drelu": Capped}.get(name, Natural).model_validate(value)


Methods = Annotated[tuple[Annotated[Natural, PlainValidator(_method)], ...], Strict(False), AfterValidator(_some)]


class OfModel(Section):
    training: Training = {}
    attacks: Attacks = {}


class Studies(Section):
    """A configuration that puts others together."""

    title: Title
    source: str = ""
    columns: Listed[Literal[tuple(PAPER_COLUMNS)]] = ()
    pictures: Listed[Literal[PICTURES]] = ()
    studies: Listed[FileName]


class Runs(Studies):
    """A configuration whose every combination is a run."""

    studies: Listed[FileName] = ()
    extends: FileName | None = None
    data: Data
    mode: Literal["paper", "fast"] = "fast"
    seeds: Listed[Annotated[int, Field(ge=0, le=LARGEST)]] = (0, 1, 2)
    models: Listed[ModelName]
    methods: Methods
    place: Literal[tuple(models.PLACES)] = "head"
    training: Training = {}
    attacks: Attacks
    by_model: dict[ModelName, OfModel] = {}


class File(Runs):
    """One file, before what it extends is known: any part of the keys."""

    title: Title = ""
    data: Data = {}
    models: Listed[ModelName] = ()
    methods: Methods = ()
    attacks: Attacks = {}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


_EXPECTED = {
    "string_type": "text",
    "string_too_short": "some text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "mapping": "a mapping",
    "method": "the name of a method, or a mapping with one",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le}",
    "literal_error": "one of {expected}",
}


def words(error: ValidationError) -> list[str]:
    """Every fault as "key: got value; expected what"."""
    return list(dict.fromkeys(map(_words, error.errors(include_url=False))))


def _words(fault: ErrorDetails) -> str:
    kind, given, context, key = fault["type"], fault["input"], fault.get("ctx", {}), _key(fault["loc"])
    if kind == "missing":
        return f"{key}: missing"
    if kind == "unknown_key":
        return f"{key} {fault['msg']}".lstrip()
    if kind == "value_error":
        # Of a section the message begins with the key; of a value with what it is.
        message = str(context["error"])
        return f"{key}: {message}" if message.startswith("got ") else f"{key}.{message}"
    if fault["loc"][-1:] == ("[key]",):
        key = f"{key.rsplit('.', 2)[0]} key"
    expected = _EXPECTED.get(kind, fault["msg"]).format(**context)
    return f"{key}: got {_shown(given)}; expected {expected}"


def _key(place: tuple[int | str, ...]) -> str:
    """A place in the file, such as methods[1].training.epochs."""
    # The message has the value; only mappings in a list need a number.
    if place and isinstance(place[-1], int) and (place[0], len(place)) != ("methods", 2):
        place = place[:-1]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
