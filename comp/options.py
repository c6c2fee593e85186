"""Groups of options that are checked when they are made, and overridden by name."""

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import NoneType
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from comp.errors import RecipeError


class Options(BaseModel):
    """A group of options, checked when it is made and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A checked copy with `changes`."""
        return type(self)(**(dict(self) | changes))

    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults, as JSON values, each group with its kind."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        for name, value in self:
            if isinstance(value, Options) and (parts := value.changed()):
                values[name] = parts
        return values | ({"kind": self.kind} if hasattr(self, "kind") else {})


Group = TypeVar("Group", bound=Options)


def require(holds: bool, option: str, must: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{option} must be {must}, got {value!r}")


def override(group: Group, settings: Iterable[str]) -> Group:
    """`group` with each `section.option=value` of `settings` applied, all at once."""
    values = group.model_dump()
    for setting in settings:
        path, found, text = setting.partition("=")
        if not found:
            raise RecipeError(f"a setting reads section.option=value, got {setting!r}")
        owner: Any = values
        section: Options = group
        *sections, name = path.split(".")
        for part in sections:
            _find(section, part, path, is_section=True)
            owner, section = owner[part], getattr(section, part)
        _find(section, name, path, is_section=False)
        owner[name] = _parsed(text, type(section).model_fields[name].annotation)
    return restored(type(group), values)


def _find(group: Options, name: str, path: str, *, is_section: bool) -> None:
    """RecipeError unless `group` has an option, or a section, called `name`."""
    names = [option for option in type(group).model_fields if option not in ("name", "kind")]
    if name not in names:
        near = get_close_matches(name, names, n=3)
        hint = f"near it: {', '.join(near)}" if near else f"there are {', '.join(names)}"
        raise RecipeError(f"no option {path!r}; {hint}")
    value = getattr(group, name)
    if is_section and not isinstance(value, Options):
        raise RecipeError(f"{path!r}: {name} is an option and has no parts")
    if not is_section and isinstance(value, Options):
        first = next(option for option in type(value).model_fields if option != "kind")
        raise RecipeError(f"{path!r} is a section: name one of its options, as in {path}.{first}")


def _parsed(text: str, annotation: Any) -> Any:
    """`text` as pydantic reads it; lists are JSON, and none is None where that is allowed."""
    if text.lower() in ("none", "null") and NoneType in get_args(annotation):
        return None
    if text.startswith("["):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    return text


def restored(kind: type[Group], values: Mapping[str, Any]) -> Group:
    """The group of which `values` are the JSON form; RecipeError for the first that is refused."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    places = [part for part in first["loc"] if isinstance(part, str)]
    if places[:1] == ["training"]:
        del places[1:2]  # pydantic puts the kind of training there
    path = ".".join(places)
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    message = message.replace("Tuple should", "must").replace("a valid tuple", "a list like [1,2]")
    message = message.partition(", unable to parse")[0].partition(" after validation")[0]
    if first["type"] == "extra_forbidden":
        raise RecipeError(f"no option {path!r}: the run was made by another version of this code")
    if first["loc"] and " must be " not in message:
        message = f"{path} {message}, got {first['input']!r}"
    raise RecipeError(message) from None


def flat(options: Options) -> dict[str, str]:
    """`options` by dotted name, as text."""
    found: dict[str, str] = {}
    for name, value in options:
        if isinstance(value, Options):
            found |= {f"{name}.{inner}": text for inner, text in flat(value).items()}
        else:
            found[name] = json.dumps(value) if isinstance(value, tuple) else str(value)
    return found


def differing(columns: Mapping[str, Mapping[str, str]]) -> list[tuple[str, ...]]:
    """The options that are not the same in all `columns`, with their value in each."""
    names = dict.fromkeys(name for options in columns.values() for name in options)
    rows = [(name, *(of.get(name, "-") for of in columns.values())) for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]
