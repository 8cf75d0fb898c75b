"""What a configuration file may hold, as pydantic models; the words of its errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from dreluop.adaptive.evaluation.budget import AttackSettings
from studies.drelu_paper import data, models
from studies.drelu_paper.names import PAPER, PICTURES
from studies.drelu_paper.recipe import DataRecipe
from studies.drelu_paper.training import TrainingConfig

T = TypeVar("T")

# Far below torch's limits, so that sums, such as that of a seed and a batch's number, are valid too.
LARGEST = 2**31 - 1
# Of a value in a message, in characters.
LONGEST_VALUE = 80


def _whole(value: Any) -> Any:
    """1e3 is a whole number too, as people write it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


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


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _called(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


Whole = Annotated[int, BeforeValidator(_whole), Field(le=LARGEST)]
Seed = Annotated[Whole, Field(ge=0)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# YAML has lists only; the members are checked strictly all the same.
Listed = Annotated[tuple[T, ...], Strict(False), AfterValidator(_some), AfterValidator(_different)]
Numbers = Annotated[Listed[Number], BeforeValidator(_listed)]
FileName = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
ModelName = Literal[tuple(models.NAMES)]
Platform = Literal[tuple(models.PLACES)]
Column = Literal[tuple(PAPER)]
Picture = Literal[PICTURES]


class Section(BaseModel):
    """A mapping of a configuration file. Every key that is not given keeps the default of what is configured."""

    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise PydanticCustomError("mapping", "mapping")
        for key in value:
            if key not in cls.model_fields:
                words = {"key": _shown(key), "known": ", ".join(sorted(cls.model_fields))}
                raise PydanticCustomError("unknown_key", "key: got {key}; expected some of {known}", words)
        return value

    def given(self) -> dict[str, Any]:
        """The keys of the file."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def _section(
    name: str, configured: type[Any], /, *, without: Iterable[str] = (), checked: bool = True, **types: Any
) -> type[Section]:
    """The fields of a dataclass as a section, with the types that they have there.

    Args:
        name: of the section.
        configured: the dataclass.
        without: fields that a configuration file gives elsewhere.
        checked: any part of the fields makes a whole object, so that the dataclass can check their range.
        types: of fields whose type is narrower here.
    """
    hints = {**get_type_hints(configured), **types}
    keys = [field.name for field in fields(configured) if field.name not in without]

    def in_range(self: Section) -> Section:
        configured(**self.given())
        return self

    validators = {"in_range": model_validator(mode="after")(in_range)} if checked else {}
    return create_model(
        name,
        __base__=Section,
        __validators__=validators,
        **{key: (_strict(hints[key]), None) for key in keys},  # type: ignore[call-overload]
    )


def _strict(hint: Any) -> Any:
    if hint is int:
        return Whole
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(map(_strict, get_args(hint)))]  # noqa: UP007 (of a tuple)
    if get_origin(hint) is tuple:
        # Empty where it turns off what a configuration extends, such as a sweep over bounds.
        return Annotated[hint, Strict(False), AfterValidator(_different)]
    return hint


# Given by the method, or the same for the attacks of training and of the evaluation.
Training = _section("Training", TrainingConfig, without=("seed", "method", "beta", "balancer", "eps"))
Attacks = _section("Attacks", AttackSettings, seed=Seed)
# generated and original_share may come from a study and from one of its methods.
DataSection = _section("Data", DataRecipe, checked=False, name=Literal[data.NAMES])
Data = Annotated[DataSection, BeforeValidator(_named)]


class Method(Section):
    method: str
    training: Training = Training()
    models: Listed[ModelName] | None = None
    data: DataSection = DataSection()


class Natural(Method):
    pass


class Adversarial(Method):
    pass


class Trades(Method):
    beta: Numbers


class Capped(Method):
    balancer: Numbers
    init: Numbers = (100.0,)
    calibrate: Annotated[Whole, Field(ge=1)] | None = None


METHODS: dict[str, type[Method]] = {"natural": Natural, "at": Adversarial, "trades": Trades, "drelu": Capped}


def _tag(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value.get("method")
    return value.method if isinstance(value, Method) else None


AnyMethod = Annotated[
    Union[tuple(Annotated[kind, Tag(name)] for name, kind in METHODS.items())],  # noqa: UP007 (of a tuple)
    Discriminator(_tag),
    BeforeValidator(_called),
]


class OfModel(Section):
    training: Training = Training()
    attacks: Attacks = Attacks()


class File(Section):
    """One file, before what it extends is known: any part of the keys."""

    title: Annotated[str, Field(min_length=1)] = ""
    source: str = ""
    columns: Listed[Column] = ()
    pictures: Listed[Picture] = ()
    extends: FileName | None = None
    studies: Listed[FileName] = ()
    data: Data = DataSection()
    mode: Literal["paper", "fast"] = "fast"
    seeds: Listed[Seed] = (0, 1, 2)
    models: Listed[ModelName] = ()
    methods: Annotated[tuple[AnyMethod, ...], Strict(False), AfterValidator(_some)] = ()
    place: Platform = "head"
    training: Training = Training()
    attacks: Attacks = Attacks()
    by_model: dict[ModelName, OfModel] = {}


class Runs(File):
    """A whole configuration whose every combination is a run."""

    title: Annotated[str, Field(min_length=1)]
    data: Data
    models: Listed[ModelName]
    methods: Annotated[tuple[AnyMethod, ...], Strict(False), AfterValidator(_some)]
    attacks: Attacks


class Studies(Section):
    """A whole configuration that puts others together."""

    title: Annotated[str, Field(min_length=1)]
    source: str = ""
    columns: Listed[Column] = ()
    pictures: Listed[Picture] = ()
    studies: Listed[FileName]


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
    "union_tag_not_found": "the name of a method, or a mapping with one",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le}",
    "literal_error": "one of {expected}",
    "union_tag_invalid": "one of {expected_tags}",
}


def words(error: ValidationError) -> list[str]:
    """Every fault as "key: got value; expected what"."""
    return list(dict.fromkeys(map(_words, error.errors(include_url=False))))


def _words(fault: ErrorDetails) -> str:
    kind, given, context = fault["type"], fault["input"], fault.get("ctx", {})
    key, method = _key(fault["loc"])
    if kind == "missing":
        return f"{key}: missing" + (f" for method {method!r}" if method else "")
    if kind == "unknown_key":
        if method and len(fault["loc"]) == 3:
            key = f"{key}, {method}"
        return f"{key} {fault['msg']}".lstrip()
    if kind == "value_error":
        # Of a section the message begins with the key; of a value with what it is.
        message = str(context["error"])
        return f"{key}: {message}" if message.startswith("got ") else f"{key}.{message}"
    if fault["loc"][-1:] == ("[key]",):
        key = f"{key.rsplit('.', 2)[0]} key"
    elif kind == "union_tag_invalid":
        key, given = f"{key}.method", given["method"]
    expected = _EXPECTED.get(kind, fault["msg"]).format(**context)
    return f"{key}: got {_shown(given)}; expected {expected}"


def _key(place: tuple[int | str, ...]) -> tuple[str, str | None]:
    """A place in the file, such as methods[1].training.epochs, and the method that the place belongs to."""
    method = str(place[2]) if place[:1] == ("methods",) and len(place) > 2 else None
    parts = place if method is None else (*place[:2], *place[3:])
    # The message has the value; only mappings in a list need a number.
    if parts and isinstance(parts[-1], int) and (parts[0], len(parts)) != ("methods", 2):
        parts = parts[:-1]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return path.removeprefix("."), method
