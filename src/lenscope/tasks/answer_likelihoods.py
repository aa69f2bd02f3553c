"""How likely a model, or a lens at a layer, finds each of several answers to a prompt.

Knows: which tokens an answer adds, how answers of several tokens are read with their prompt once.
Does not know: what questions are, what answers are compared for.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, final, overload

import numpy as np
import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.engine import exact_modes
from lenscope.engine.cache_layout import cache_layout
from lenscope.engine.prefix_cache import Prefixes
from lenscope.engine.staircase import Staircase
from lenscope.errors import LenscopeError
from lenscope.files.parquet_tables import columns_frame
from lenscope.lenses.lens import Lens
from lenscope.measures.streamed import top_token
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers
from lenscope.models.progress import Progress
from lenscope.models.prompts import Prompt
from lenscope.models.readout import wide

# prompts that are read before their answers are scored together: few enough to hold, many enough for a product
PROMPTS_TOGETHER = 32


@final
@dataclass(frozen=True, eq=False, repr=False)
class AnswerScores(Brief):
    """How likely a lens finds each answer: ln p summed over the answer's tokens, in nats, float64.

    `log_probs` is (N, L, C) over N prompts, `layers` and choices; `own` (N, C) the model's own, without a lens;
    `lengths` (N, C) counts tokens. Prompts with fewer choices than others have NaN, and length 0, in the rest.
    """

    layers: tuple[int, ...]
    log_probs: np.ndarray
    own: np.ndarray
    lengths: np.ndarray

    def to_dataframe(self) -> Any:
        """A row for each prompt, layer and choice, null where a prompt has fewer choices; `own` is the model's ln p.

        It is a data frame of pandas, or of polars where only that is installed; LenscopeError without both.
        """
        prompt, layer, choice = np.indices(self.log_probs.shape).reshape(3, -1)
        names = {"prompt": prompt, "layer": np.array(self.layers)[layer], "choice": choice}
        numbers = {"log_prob": self.log_probs.reshape(-1), "own": self.own[prompt, choice]}
        return columns_frame({**names, **numbers, "length": self.lengths[prompt, choice]})


class _Places:
    """Where the answers' tokens are predicted: states in a row, each prompt's last one, then those of its answers.

    `inner[i]` are the answers of prompt i that have several tokens; `row` and `token` say from which state, in that
    order, each token of each answer is predicted.
    """

    def __init__(self, answers: Sequence[Sequence[tuple[int, ...]]]) -> None:
        self.answers = answers
        self.inner = [sorted({a[:-1] for a in choices if len(a) > 1}) for choices in answers]
        self.row: list[int] = []
        self.token: list[int] = []
        self.count = 0
        for choices, inner in zip(answers, self.inner, strict=True):
            starts = dict(zip(inner, np.cumsum([0, *map(len, inner)]).tolist(), strict=False))
            for answer in choices:
                first = self.count + 1 + starts.get(answer[:-1], 0)
                self.row += [self.count, *range(first, first + len(answer) - 1)]
                self.token += answer
            self.count += 1 + sum(map(len, inner))

    @torch.no_grad()
    def log_probs(self, lm: LM, h: Tensor) -> list[np.ndarray]:
        """ln p of every answer from states h (L, count, D): per prompt (L, C)."""
        log_probs = np.empty((len(h), len(self.token)))
        row, token = (torch.tensor(v, device=h.device) for v in (self.row, self.token))
        for layer, states in enumerate(h):
            _, _, total = top_token(lm, states)
            z = wide(lm.runner.readout.tokens(lm.runner.readout.prepare(states[row]), token)) - total[row]
            log_probs[layer] = z.double().cpu().numpy()
        ends = np.cumsum([len(a) for choices in self.answers for a in choices])
        summed = np.add.reduceat(log_probs, [0, *ends[:-1]], axis=1)
        return np.split(summed, np.cumsum([len(choices) for choices in self.answers])[:-1], axis=1)


@overload
def answer_log_likelihoods(
    lens: Lens, prompts: Sequence[PromptLike], choices: Sequence[Sequence[str]], layers: Sequence[int] | None = ...,
    *, progress: Progress | None = ...,
) -> AnswerScores: ...  # fmt: skip


@overload
def answer_log_likelihoods(
    lens: Sequence[Lens], prompts: Sequence[PromptLike], choices: Sequence[Sequence[str]],
    layers: Sequence[int] | None = ..., *, progress: Progress | None = ...,
) -> list[AnswerScores]: ...  # fmt: skip


def answer_log_likelihoods(
    lens: Lens | Sequence[Lens],
    prompts: Sequence[PromptLike],
    choices: Sequence[Sequence[str]],
    layers: Sequence[int] | None = None,
    *,
    progress: Progress | None = None,
) -> AnswerScores | list[AnswerScores]:
    """ln p(" " + choice | prompt) of each prompt's choices as every layer would have it; a list of lenses: one each.

    The answer's tokens are predicted one by one from the true tokens before them, and their ln p summed (not divided by
    their number). The model reads each prompt once for all answers and lenses, where its cache was measured to give the
    same numbers. Raises LenscopeError for empty choices, prompts beyond the context, and lenses of several models.

    Args:
        lens: one lens, or several of the same model.
        prompts: N texts, prompts or rows of ids.
        choices: texts per prompt (N).
        layers: of what states the lenses read; none: all that every lens has.
        progress: is called with the prompts done and all there are.
    """
    lenses = [lens] if isinstance(lens, Lens) else list(lens)
    if not lenses or any(one.lm is not lenses[0].lm for one in lenses):
        raise LenscopeError("lenses: give at least one, all of the same model")
    lm = lenses[0].lm
    if len(prompts) != len(choices) or not prompts or isinstance(prompts, str):
        raise LenscopeError(f"{len(choices)} lists of choices for {len(prompts)} prompts: give one each, at least one")
    shared = sorted(set.intersection(*({*one.layers} for one in lenses))) if layers is None else layers
    numbers = tuple(sorted({*check_layers(shared, lm.n_layers, lm.name)}))
    read = list(dict.fromkeys((*numbers, lm.n_layers)))
    many = [lm.prompt(p) for p in prompts]
    answers = [answer_tokens(lm, p, texts) for p, texts in zip(many, choices, strict=True)]
    _fitting(lm, many, answers)
    shape = len(many), len(numbers) + 1, max(map(len, answers))
    log_probs = np.full((len(lenses), *shape), np.nan)
    lengths = np.zeros((shape[0], shape[2]), dtype=np.int64)
    done = 0
    # prompts near in length run together
    order = sorted(range(len(many)), key=lambda i: len(many[i]))
    for at in range(0, len(order), PROMPTS_TOGETHER):
        batch = order[at : at + PROMPTS_TOGETHER]
        places = _Places([answers[i] for i in batch])
        states = _states(lm, [many[i] for i in batch], places, read)
        for n, one in enumerate(lenses):
            mapped = [one.map(states[read.index(layer)], layer) for layer in numbers]
            scores = places.log_probs(lm, torch.stack([*mapped, states[read.index(lm.n_layers)]]))
            for i, score in zip(batch, scores, strict=True):
                log_probs[n, i, :, : score.shape[-1]] = score
        for i in batch:
            lengths[i, : len(answers[i])] = [len(a) for a in answers[i]]
        done += len(batch)
        if progress is not None:
            progress(done, len(many))
    results = [AnswerScores(numbers, f[:, :-1], f[:, -1], lengths) for f in log_probs]
    return results[0] if isinstance(lens, Lens) else results


def answer_tokens(lm: LM, prompt: Prompt, choices: Sequence[str]) -> list[tuple[int, ...]]:
    """The tokens that " " + each choice adds to a prompt."""
    empty = next((choice for choice in choices if not choice.strip()), None)
    if empty is not None:
        raise LenscopeError(f"choice {empty!r}: is empty")
    return lm.encoder.answer_ids(prompt, [f" {choice}" for choice in choices])


def _fitting(lm: LM, prompts: Sequence[Prompt], answers: Sequence[Sequence[tuple[int, ...]]]) -> None:
    for prompt, listed in zip(prompts, answers, strict=True):
        if not listed:
            raise LenscopeError(f"prompt {prompt.text[-40:]!r}: has no choices")
        longest = len(prompt) + max(map(len, listed)) - 1
        if lm.context is not None and longest > lm.context:
            raise LenscopeError(f"{longest} tokens of prompt and answer: {lm.name} reads at most {lm.context}")


def _states(lm: LM, prompts: Sequence[Prompt], places: _Places, layers: list[int]) -> Tensor:
    """The states (L, count, D) that `places` names, at `layers`."""
    out = torch.empty(len(layers), places.count, lm.hidden_size, dtype=lm.dtype, device=lm.device)
    starts = np.cumsum([0, *(1 + sum(map(len, inner)) for inner in places.inner)]).tolist()
    plain = [i for i, inner in enumerate(places.inner) if not inner]
    if plain:
        at_end = lm.read([prompts[i] for i in plain], layers, -1)
        out[:, [starts[i] for i in plain]] = at_end[layers, -1].transpose(0, 1)
    several = [i for i, inner in enumerate(places.inner) if inner]
    for i in several:
        longest = len(prompts[i]) + max(map(len, places.inner[i]))
        forks = not lm.runner.editing and exact_modes.is_exact_mode(lm, "fork", len(prompts[i]), longest)
        read = _states_from_cache if forks else _states_read_again
        parts = list(read(lm, prompts[i], places.inner[i], layers))
        out[:, starts[i] : starts[i + 1]] = torch.cat(parts, 1)
    return out


def _states_read_again(lm: LM, prompt: Prompt, inner: Sequence[tuple[int, ...]], layers: list[int]) -> Iterator[Tensor]:
    """The states (L, n, D) after the prompt, then within each answer: the prompt is read again for every one."""
    longer = [[*prompt.ids, *tokens] for tokens in inner]
    for n, states in enumerate(lm.read(longer, layers, slice(len(prompt) - 1, None)).split()):
        h = states[layers, :]
        if not n:
            yield h[:, :1]
        yield h[:, 1:]


@torch.no_grad()
def _states_from_cache(lm: LM, prompt: Prompt, inner: Sequence[tuple[int, ...]], layers: list[int]) -> Iterator[Tensor]:
    """As `_states_read_again`, from a cache of the prompt."""
    last: dict[int, Tensor] = {}

    def keep(layer: int, h: Tensor) -> None:
        last[layer] = h[0, -1:].to(lm.device, copy=True)

    with lm.runner.exclusive.alone(), ExitStack() as undo:
        for n in layers:
            undo.callback(lm.runner.hook(n, lambda h, n=n: keep(n, h)).remove)
        cache = Prefixes(lm).own([prompt.ids])
    yield torch.stack([last[n] for n in layers])
    within: dict[int, Tensor] = {}

    def take(layer: int, h: Tensor, *_: Any) -> None:
        within[layer] = h.to(lm.device, copy=True)

    longest = max(map(len, inner))
    # pads come after all that is read, and no state sees what comes after it
    ids = [[*tokens, *[tokens[-1]] * (longest - len(tokens))] for tokens in inner]
    own = np.zeros(len(inner), dtype=np.int64)
    Staircase(lm, cache, own, own, cache_layout(lm), take).run(torch.tensor(ids, device=lm.runner.input_device))
    for n, tokens in enumerate(inner):
        yield torch.stack([within[layer][n, : len(tokens)] for layer in layers])
