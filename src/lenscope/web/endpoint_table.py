"""The table of what may be asked: every endpoint that runs a model, by name.

Knows: names, what they ask for, which function computes them. Does not know: how.
"""

from lenscope.web import endpoints, patch_endpoints, requests
from lenscope.web.endpoints import ServedEndpoint

ENDPOINTS = {
    endpoint.name: endpoint
    for endpoint in (
        ServedEndpoint(
            "trajectory",
            "The prediction trajectory of a prompt",
            requests.TrajectoryIn,
            endpoints.prepare_trajectory,
        ),
        ServedEndpoint(
            "comparison",
            "Two prompts, or two lenses, compared",
            requests.ComparisonIn,
            endpoints.prepare_comparison,
        ),
        ServedEndpoint(
            "ranks",
            "The ranks of chosen tokens at every layer",
            requests.RanksIn,
            endpoints.prepare_ranks,
        ),
        ServedEndpoint(
            "patched_trajectory",
            "The trajectory of a run with a state written into it",
            requests.PatchedTrajectoryIn,
            patch_endpoints.prepare_patched_trajectory,
        ),
        ServedEndpoint(
            "explanation",
            "What one state means, in words, beside its controls",
            requests.ExplanationIn,
            patch_endpoints.prepare_explanation,
            streams=True,
        ),
        ServedEndpoint(
            "grid",
            "Source layers × target layers of one position",
            requests.GridIn,
            patch_endpoints.prepare_grid,
            streams=True,
        ),
        ServedEndpoint(
            "steering",
            "What the model writes plainly, and with a vector in its states",
            requests.SteeringIn,
            patch_endpoints.prepare_steering,
            streams=True,
        ),
        ServedEndpoint(
            "generation",
            "What the model writes, each token with its trajectory",
            requests.GenerationIn,
            endpoints.prepare_generation,
            streams=True,
        ),
    )
}
