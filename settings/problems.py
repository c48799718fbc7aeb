"""What is wrong with a setting or a catalog, in the words of whoever wrote it.

pydantic finds the errors; here each becomes a line that says what was expected and what came. Models
on `Strict` do that at their own level, where the names of the allowed fields are still known.
"""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar, Final, LiteralString, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from tidegate.operators.model.errors import TidegateError
from tidegate.settings.durations import NEEDS

# Kinds of errors whose message is final; for the other two it matters that the name is not in the file.
EXPLAINED: Final = "explained"
MISSING: Final = "explained_missing"
UNKNOWN: Final = "explained_unknown"
SHOWN_MAX: Final = 60
CHOICES_MAX: Final = 20


class SettingsError(TidegateError):
    """Settings that cannot be used; `str()` is one line per problem and holds no secret."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Strict(BaseModel):
    """A frozen model that knows all its fields, with errors that are worded for people.

    With `secretive` an error never shows what came, as it may hold a password.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    secretive: ClassVar[bool] = False

    @classmethod
    def choices(cls) -> tuple[str, ...]:
        """Return the names that may be written, for the message about one that may not."""
        return tuple(cls.model_fields)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            found = error.errors(include_url=False)
        # Outside of the except block, so that no traceback drags the input along.
        raise ValidationError.from_exception_data(cls.__name__, [cls._worded(line) for line in found])

    @classmethod
    def _worded(cls, line: ErrorDetails) -> InitErrorDetails:
        """Return the same error at the same place; its message is final, and what came is left out."""
        kind, place = line["type"], line["loc"]
        is_missing, is_unknown = kind in ("missing", MISSING), kind in ("extra_forbidden", UNKNOWN)
        if kind == "missing":
            wanted = cls.model_fields[str(place[-1])].description
            text = f"is missing: {wanted}" if wanted else "is missing"
        elif kind == "extra_forbidden":
            text = unknown(str(place[-1]), cls.choices())
        else:
            text = explain(line, secretive=cls.secretive)
        return final(text, place, MISSING if is_missing else UNKNOWN if is_unknown else EXPLAINED)


def final(text: str, place: tuple[int | str, ...] = (), kind: LiteralString = EXPLAINED) -> InitErrorDetails:
    """Return an error with this message, to which nothing is added; what came is not kept, so it cannot leak."""
    # Through the context, as braces in a template would be taken for fields.
    return InitErrorDetails(type=PydanticCustomError(kind, "{text}", {"text": text}), loc=place, input=None)


def explain(line: ErrorDetails, *, secretive: bool = False) -> str:
    """One error in words: what was expected and, unless `secretive`, what came."""
    kind, given = line["type"], line["input"]
    if kind.startswith(EXPLAINED):
        return line["msg"]
    word = WORDS.get(kind)
    text = word(line.get("ctx", {})) if word else line["msg"].removeprefix("Value error, ")
    return text if secretive else text + shown(given)


def unknown(name: str, choices: Sequence[str]) -> str:
    """Return the message about an unknown name, with the closest known one."""
    names = ", ".join(choices[:CHOICES_MAX]) + (", …" if len(choices) > CHOICES_MAX else "")
    return f"is unknown{did_you_mean(name.lower(), choices)}; choices: {names or 'none'}"


def did_you_mean(name: str, choices: Sequence[str], prefix: str = "") -> str:
    """`; did you mean …?` where a choice looks alike, else nothing."""
    found = get_close_matches(name, choices, n=1)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def shown(given: object) -> str:
    """`, got …` for what can be shown in a line, else nothing."""
    if given is None:
        return ", got nothing"
    if not isinstance(given, str | int | float):
        return ""
    # What a catalog has without quotes is a subclass, and shown without.
    text = repr(given) if type(given) is str else str(given)
    return f", got {text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + '…'}"


WORDS: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "bool_parsing": lambda _: "needs true or false",
    "bool_type": lambda _: "needs true or false",
    "byte_size": lambda _: "needs a size in bytes such as 65536, 64KiB or 1MiB",
    "byte_size_unit": lambda _: "needs a size in bytes such as 65536, 64KiB or 1MiB",
    "dict_type": lambda _: "needs a mapping",
    "finite_number": lambda _: "needs a finite number",
    "float_parsing": lambda _: "needs a number",
    "float_type": lambda _: "needs a number",
    "greater_than": lambda ctx: f"needs more than {ctx['gt']}",
    "greater_than_equal": lambda ctx: f"needs {ctx['ge']} or more",
    "int_from_float": lambda _: "needs a whole number",
    "int_parsing": lambda _: "needs a whole number",
    "int_parsing_size": lambda _: "needs a smaller number",
    "int_type": lambda _: "needs a whole number",
    "less_than": lambda ctx: f"needs less than {ctx['lt']}",
    "less_than_equal": lambda ctx: f"needs {ctx['le']} or less",
    "list_type": lambda _: "needs a list",
    "literal_error": lambda ctx: f"needs {ctx['expected'].replace(chr(39), '')}",
    "model_attributes_type": lambda _: "needs a mapping",
    "model_type": lambda _: "needs a mapping",
    "path_type": lambda _: "needs a path",
    "string_pattern_mismatch": lambda ctx: f"needs to match {ctx['pattern']}",
    "string_too_long": lambda ctx: f"needs {ctx['max_length']} characters or less",
    "string_too_short": lambda _: "needs some text",
    "string_type": lambda _: "needs text",
    "time_delta_parsing": lambda _: NEEDS,
    "time_delta_type": lambda _: NEEDS,
    "too_long": lambda ctx: f"needs {ctx['max_length']} entries or less",
    "too_short": lambda ctx: f"needs at least {ctx['min_length']} of them",
    "tuple_type": lambda _: "needs a list",
    "union_tag_not_found": lambda ctx: f"needs a mapping with its {ctx['discriminator'].strip(chr(39))}",
    "union_tag_invalid": lambda ctx: f"needs {ctx['expected_tags'].replace(chr(39), '')}",
}
