"""What every section of a deployment's description is made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Resources = dict[str, Annotated[float, Field(gt=0)]]  # of Ray, custom: name → amount


class Section(BaseModel):
    """Unknown keys are refused, values are not converted, and nothing changes after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
