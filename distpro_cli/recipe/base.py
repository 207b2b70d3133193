"""What the parts of a recipe's schema are made of: the frozen model, kinds of numbers, the error of a value."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MOST_NUMBER = 1e30  # float32 ends at 3.4e38, and a rate is multiplied before it is used

Fraction = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveNumber = Annotated[float, Field(gt=0)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Mean = Annotated[list[Probability], Field(min_length=1)]
Deviation = Annotated[list[PositiveShare], Field(min_length=1)]
UserFile = Annotated[str, Field(pattern=r"\.py:\w+$")]  # path/to/file.py:Name
Connection = Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]


def wrong(message: str, key: str = "") -> PydanticCustomError:
    """Returns the error for a value that has the right type and is still wrong.

    Args:
        message: What is wrong and what is allowed.
        key: For a check across keys: the key of the section that the message is about.
    """
    # Handed over as a value, since pydantic reads braces in a template.
    return PydanticCustomError("wrong", "{message}", {"message": message, "key": key})


class Model(BaseModel):
    """Base of every part of a recipe: frozen, unknown keys are errors, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _numbers_leave_room(self) -> Self:
        for key in type(self).model_fields:
            value = getattr(self, key)
            if isinstance(value, float) and abs(value) > MOST_NUMBER:
                raise wrong(f"found {value:g}; allowed: numbers up to {MOST_NUMBER:g}, as computing is in float32", key)
        return self
