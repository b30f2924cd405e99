"""What all blocks of the configuration share: strictness, and the ranges that numbers may have."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class Block(BaseModel):
    """Base of every block: unknown keys, silent type conversion and later changes are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)
