"""The table of what may be asked: every endpoint that runs a model, by name.

Knows: names, what they ask for, which function computes them. Does not know: how.
"""

from lenscope.web.endpoints import (
    ServedEndpoint,
    prepare_comparison,
    prepare_generation,
    prepare_ranks,
    prepare_trajectory,
)
from lenscope.web.patch_endpoints import prepare_explanation, prepare_grid
from lenscope.web.requests import ComparisonIn, ExplanationIn, GenerationIn, GridIn, RanksIn, TrajectoryIn

ENDPOINTS = {
    endpoint.name: endpoint
    for endpoint in (
        ServedEndpoint("trajectory", "The prediction trajectory of a prompt", TrajectoryIn, prepare_trajectory),
        ServedEndpoint("comparison", "Two prompts or two lenses compared", ComparisonIn, prepare_comparison),
        ServedEndpoint("ranks", "The ranks of chosen tokens at every layer", RanksIn, prepare_ranks),
        ServedEndpoint("explanation", "What one state means, in words", ExplanationIn, prepare_explanation, True),
        ServedEndpoint("grid", "Source layers × target layers of one position", GridIn, prepare_grid, True),
        ServedEndpoint("generation", "What the model writes, read as it comes", GenerationIn, prepare_generation, True),
    )
}
