"""YAML files, read strictly: every way in which one can be malformed is an error that names the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError


def read(path: Path) -> dict[str, Any]:
    """The mapping in a file.

    Raises:
        ValueError: the file is not text, not YAML, not a mapping, or gives a key twice; the message names the place.
        OSError: the file cannot be read.
    """
    try:
        found = yaml.load(path.read_bytes(), _Loader)
    except yaml.reader.ReaderError as error:
        raise ValueError(f"{path}: got bytes that are not text ({error.reason}); expected a YAML file") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{path}: {where}{error.problem}; expected valid YAML") from error
    except RecursionError as error:
        raise ValueError(f"{path}: got brackets nested too deeply; expected valid YAML") from error
    # Scalars such as 2020-13-45 raise ValueError.
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {error}; expected valid YAML") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: got {'nothing' if found is None else type(found).__name__}; expected a mapping")
    return found


_BOOLEAN, _INT, _FLOAT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "merge"))


class _Loader(yaml.SafeLoader):
    """The numbers and booleans of YAML 1.2, and no key twice."""

    # YAML 1.1 reads off, on, yes and no as booleans ("amp: off" would be false), 010 as 8, 1:30 as 90, 1e-2 as text.
    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {
        first: [one for one in resolvers if one[0] not in (_BOOLEAN, _INT, _FLOAT)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        # Zeros in front are no prefix of a base.
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if key.value in seen:
                raise ConstructorError(None, None, f"got the key {key.value!r} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(_BOOLEAN, re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_INT, re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor(_INT, _Loader.construct_yaml_int)
