"""How the next token is chosen from a state: the most probable one, or drawn; when a row ends.

Knows: the vocabulary in pieces, temperature and nucleus, end-of-text tokens, stop strings.
Does not know: where states come from, which rows run together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.measures.contrasted_readout import contrasted
from lenscope.measures.streamed import WHOLE_ROWS_BYTES, top_token
from lenscope.models import generation, inputs
from lenscope.models.language_model import LM
from lenscope.models.readout import wide


@dataclass(frozen=True)
class WrittenToken:
    """A token that row `row` of a batch wrote: `log_prob` is ln p in nats, at temperature 1.

    `reason` says why the row ended with it: "end", "stop" or "length"; "" where it goes on.
    """

    row: int
    id: int
    text: str
    log_prob: float
    reason: str = ""


class TokenChooser:
    """Chooses tokens for rows that write, and knows what each has written: what `sweep.generate` calls for every token.

    Temperature 0 is greedy; above it tokens are drawn from softmax(logits / temperature), cut to the smallest set of
    probability `top_p`, by one uniform number per row and step that `seed` fixes, whatever rows run together.
    Rows end at an end-of-text token, or where their text contains one of `stop`. With a `contrast` α states come in
    pairs (n, 2 · D), and the logits are (1 + α) · those of a row - α · those of the row beside it.

    Args:
        lm: the model that writes.
        n: how many rows there are.
        max_new_tokens: how many tokens a row writes at most.
        stop: texts that end a row.
        temperature: 0 (greedy) or a positive number.
        top_p: above 0, at most 1.
        seed: of the draws.
        contrast: α, at least 0; 0: none.
    """

    def __init__(
        self, lm: LM, n: int, max_new_tokens: int, stop: Sequence[str], temperature: float, top_p: float, seed: int,
        contrast: float = 0.0,
    ) -> None:  # fmt: skip
        if not 0 <= temperature < float("inf"):
            raise LenscopeError(f"temperature {temperature}: give 0 (greedy) or a positive number")
        if not 0 < top_p <= 1:
            raise LenscopeError(f"top_p {top_p}: give a number above 0, at most 1")
        seed = inputs.count(seed, "seed", 0)
        if any(not s for s in stop):
            raise LenscopeError("stop: an empty string would end every text before it begins")
        self.lm = lm
        self.readout = contrasted(lm.runner.readout, contrast)
        self.stop = tuple(stop)
        self.temperature, self.top_p = temperature, top_p
        self.ends = np.array(generation.end_ids(lm.runner), dtype=np.int64)
        self.draws = (
            np.random.default_rng(seed).random((n, max_new_tokens)) if temperature else np.zeros((0, max_new_tokens))
        )
        self.written: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}

    def choose(self, h: Tensor, rows: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids, their log-probabilities (at temperature 1; contrasted, where rows are) and which rows end."""
        if self.temperature:
            ids, log_probs = self._draw(h, self.draws[rows, step])
        else:
            tokens, top, total = top_token(self.lm, h, self.readout)
            ids, log_probs = tokens.cpu().numpy(), (top - total).cpu().numpy()
        ended = np.isin(ids, self.ends)
        for row in rows[ended].tolist():
            self.reasons[row] = "end"
        if self.stop:
            for n, (row, token) in enumerate(zip(rows.tolist(), ids.tolist(), strict=True)):
                text = self.written.setdefault(row, [])
                # what was chosen for this step before it was interrupted does not count
                text[step:] = [token]
                if not ended[n] and self._before_stop(text) is not None:
                    ended[n] = True
                    self.reasons[row] = "stop"
        return ids, log_probs, ended

    def text(self, ids: Sequence[int]) -> str:
        """What was written, as text, without the end-of-text token and up to a stop string."""
        shown = list(ids[:-1] if len(ids) and ids[-1] in self.ends else ids)
        cut = self._before_stop(shown)
        return self.lm.encoder.decode(shown) if cut is None else cut

    def reason(self, row: int) -> str:
        """Why a row ended: "end" (of text), "stop" (a stop string) or "length"."""
        return self.reasons.get(row, "length")

    def _before_stop(self, ids: Sequence[int]) -> str | None:
        text = self.lm.encoder.decode(ids) if self.stop else ""
        places = [at for s in self.stop if (at := text.find(s)) >= 0]
        return text[: min(places)] if places else None

    def _draw(self, h: Tensor, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids, log_probs = [], []
        for part, u in zip(
            h.split(self._group()), torch.from_numpy(uniform).to(h.device).split(self._group()), strict=True
        ):
            with self.lm.runner.exclusive.alone(), torch.no_grad():
                ready = self.readout.prepare(part.to(self.lm.device, self.lm.dtype))
                z = wide(self.readout.columns(ready, 0, self.lm.vocab_size))
            p = (z / self.temperature).softmax(-1).double()
            p, order = p.sort(stable=True, dim=-1, descending=True)
            below = p.cumsum(-1) - p
            p = torch.where(below < self.top_p, p, 0.0)
            total = p.cumsum(-1)
            at = torch.searchsorted(total, u[:, None] * total[:, -1:], right=True).clamp_max(p.shape[-1] - 1)
            token = order.gather(-1, at)
            ids.append(token[:, 0])
            log_probs.append(z.log_softmax(-1).gather(-1, token)[:, 0])
        return torch.cat(ids).cpu().numpy(), torch.cat(log_probs).cpu().numpy()

    def _group(self) -> int:
        return max(1, WHOLE_ROWS_BYTES // (4 * self.lm.vocab_size))
