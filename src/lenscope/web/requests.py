"""What may be asked of the server: one strict model for each request, with sizes that are limited.

Knows: fields, their types and largest sizes. Does not know: models and lenses, which limits a server was started with.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lenscope.measures.contrasted_readout import MOST_CONTRAST

MOST_CHARACTERS = 400_000
MOST_IDS = 131_072
MOST_LAYERS = 1024
FAR = 1 << 24

# lists end at the first value that is wrong: a line says one fault, and a hundred thousand of them would take seconds
Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Name = Annotated[str, Field(min_length=1, max_length=300)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Layer = Annotated[int, Field(ge=-MOST_LAYERS, le=MOST_LAYERS)]
Place = Annotated[int, Field(ge=-FAR, le=FAR)]
LayerList = Annotated[list[Layer], Field(min_length=1, max_length=MOST_LAYERS, fail_fast=True)]
PlaceList = Annotated[list[Place], Field(min_length=1, max_length=MOST_IDS, fail_fast=True)]
TopK = Annotated[int, Field(ge=1, le=50)]
NewTokens = Annotated[int, Field(ge=1, le=65_536)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
Temperature = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
# α of (1 + α) · patched - α · unpatched logits
Contrast = Annotated[float, Field(ge=0, le=MOST_CONTRAST, allow_inf_nan=False, description="α; 0: no contrast")]
Strength = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
ModelNumber = Annotated[int, Field(ge=0, lt=64)]
OperationName = Literal["replace", "add", "add_norm_matched", "replace_norm_matched"]
Streamed = Literal["explanation", "grid", "steering", "generation"]
EndpointName = Literal["trajectory", "comparison", "ranks", "patched_trajectory", Streamed]
FileFormat = Literal["html", "json", "parquet", "python"]


class StrictModel(BaseModel):
    """A request or a part of one: values of other types and fields that it does not have are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TurnIn(StrictModel):
    """One turn of a chat."""

    role: Annotated[str, Field(min_length=1, max_length=40)]
    content: Text


class PromptIn(StrictModel):
    """A prompt, as exactly one of a text, token ids and the turns of a chat.

    `model` says whose tokens are meant: 0, the model that is read, or the number of an explaining model.
    """

    text: Text | None = None
    ids: Annotated[list[TokenId], Field(max_length=MOST_IDS, fail_fast=True)] | None = None
    turns: Annotated[list[TurnIn], Field(min_length=1, max_length=1000, fail_fast=True)] | None = None
    model: ModelNumber = 0

    @model_validator(mode="after")
    def _one(self) -> "PromptIn":
        if sum(value is not None for value in (self.text, self.ids, self.turns)) != 1:
            raise ValueError("give exactly one of text, ids and turns")
        return self


class TokenizeIn(StrictModel):
    """A prompt whose tokens are asked for."""

    prompt: PromptIn


class TrajectoryIn(StrictModel):
    """The prediction trajectory of a prompt, through a lens; `target` is the text or the id of a token."""

    prompt: PromptIn
    lens: Name
    layers: LayerList | None = None
    positions: PlaceList | None = None
    target: TokenId | Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    top_k: TopK = 5


class ComparisonIn(StrictModel):
    """Two prompts through one lens, or through a lens each."""

    first: PromptIn
    second: PromptIn
    lens: Name
    second_lens: Name | None = None
    layers: LayerList | None = None
    positions: PlaceList | None = None
    top_k: TopK = 5


class RanksIn(StrictModel):
    """The ranks of up to five tokens at every layer of a prompt."""

    prompt: PromptIn
    lens: Name
    tokens: Annotated[list[TokenId], Field(min_length=1, max_length=5)]
    layers: LayerList | None = None
    positions: PlaceList | None = None


class CellIn(StrictModel):
    """A place in a prompt."""

    layer: Layer
    position: Place


class StateIn(StrictModel):
    """One hidden state: a prompt, a layer and a position."""

    prompt: PromptIn
    layer: Layer
    position: Place


class PatchedTrajectoryIn(StrictModel):
    """The trajectory of a run of a prompt with a state of another prompt, or of this one, written into it."""

    prompt: PromptIn
    source: StateIn
    into: CellIn
    operation: OperationName = "replace"
    mapping: Name | None = None
    lens: Name
    top_k: TopK = 5


class TargetIn(StrictModel):
    """A target prompt: one by its name, or a text with its placeholder, a position or a substring."""

    name: Name | None = None
    text: Text | None = None
    at: Place | Annotated[str, Field(min_length=1, max_length=1000)] = -1

    @model_validator(mode="after")
    def _one(self) -> "TargetIn":
        if (self.name is None) == (self.text is None):
            raise ValueError("give exactly one of name and text")
        return self


class ExplanationIn(StrictModel):
    """What a model says that one hidden state means, at each of some target layers, beside its controls.

    With a `contrast` α tokens of the state's rows and of random vectors are chosen from (1 + α) · patched - α ·
    unpatched logits.
    """

    prompt: PromptIn
    layer: Layer
    position: Place
    target: TargetIn
    model: ModelNumber = 0
    mapping: Name | None = None
    operation: OperationName = "replace"
    layers: LayerList | None = None
    max_new_tokens: NewTokens = 20
    seed: Seed = 0
    contrast: Contrast = 0.0


class GridIn(StrictModel):
    """One position's states at several source layers, patched into several target layers of a target prompt.

    With a `contrast` α what cells say is of (1 + α) · patched - α · unpatched logits.
    """

    prompt: PromptIn
    position: Place
    target: TargetIn
    source_layers: LayerList | None = None
    target_layers: LayerList | None = None
    model: ModelNumber = 0
    mapping: Name | None = None
    operation: OperationName = "replace"
    answers: Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=10)] = []
    kind: Literal["predict", "generate"] = "predict"
    max_new_tokens: NewTokens = 12
    contrast: Contrast = 0.0


class VectorIn(StrictModel):
    """A direction: one state, or the difference of two."""

    plus: StateIn
    minus: StateIn | None = None


class SteeringIn(StrictModel):
    """A prompt written on plainly, and with a vector written into its states at one layer."""

    prompt: PromptIn
    layer: Layer
    strength: Strength
    positions: PlaceList | None = None
    vector: VectorIn
    operation: OperationName = "add"
    max_new_tokens: NewTokens = 40
    temperature: Temperature = 0.0
    seed: Seed = 0


class GenerationIn(StrictModel):
    """A prompt written on, with the trajectory of every token as it comes."""

    prompt: PromptIn
    lens: Name
    max_new_tokens: NewTokens = 60
    temperature: Temperature = 0.0
    top_p: Share = 1.0
    seed: Seed = 0
    top_k: TopK = 5


class ExportIn(StrictModel):
    """A request to another endpoint, whose result is wanted as a file."""

    endpoint: EndpointName
    request: dict[str, Any]
    format: FileFormat


class ErrorOut(BaseModel):
    """Why a request was refused, in one line."""

    error: str
