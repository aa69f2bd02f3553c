"""The language model as embed → blocks → unembed: reading, editing, generating.

Knows: what a user calls: prompts in, states, logits and continuations out, edits for as long as a block lasts.
Does not know: how a batch is run (runner.py), which shortcuts are exact (exactness.py), how tokens are written
(generation.py), what edits and readings mean.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lenscope.errors import LenscopeError
from lenscope.models import exactness, generation
from lenscope.models.batches import Running, length_groups, pad
from lenscope.models.edits import ComputedEdit, Edit, as_vectors
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.inputs import count
from lenscope.models.layers import Layers, check_layers
from lenscope.models.length_regimes import Regimes
from lenscope.models.prompts import Encoder, Positions, Prompt
from lenscope.models.readout import wide
from lenscope.models.residual_stream import first_bad_parameter
from lenscope.models.runner import Capture, Runner

PromptLike = str | Prompt | Sequence[int]


@dataclass(frozen=True)
class Continuation:
    """What the model wrote after a prompt.

    Attributes:
        prompt: the prompt that it goes on from.
        ids: the token ids that were written.
        tokens: the text of each of them.
        text: all of it as one text.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    text: str


class LM:
    """A language model that can be read, edited and asked to write. Make one with `lenscope.load`.

    `read` gives hidden states, `unembed` turns states into logits, `edit` changes states for as long as a block of code
    lasts, and `generate` writes text. A prompt is a text, a list of token ids, or what `prompt` and `chat` make. The
    model is put into eval mode, and its weights are never changed.

    Attributes:
        name: what the model is called.
        source: where it was loaded from.
        revision: the branch, tag or commit there; None where it has none.
        model: the transformers model.
        unused: the weights in its files that the model has no place for.
        adapter: the adapter that is on, as `with_adapter` was given it; "" for models that were not made so.
        plain: the model without it, which has the same weights; None where there is none.
        runner: the mechanics, for those who extend lenscope.

    Raises LenscopeError if weights or buffers hold NaN, the model is not causal, or its readout cannot be verified.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, name: str, source: str = "", revision: str | None = None
    ) -> None:
        bad = first_bad_parameter(model)
        if bad:
            raise LenscopeError(f"{name}: weights contain NaN or infinity, first in {bad}; the file is broken")
        model.eval()
        self.model = model
        self.name = name
        self.source = source
        self.revision = revision
        self.unused: tuple[str, ...] = ()
        self.adapter = ""
        self.plain: LM | None = None
        self.runner = Runner(model, tokenizer, name)

    def __repr__(self) -> str:
        return f"LM({self.name}: {self.n_layers} layers, D {self.hidden_size}, V {self.vocab_size}, {self.dtype})"

    @property
    def encoder(self) -> Encoder:
        """The tokenizer as lenscope uses it, from text to ids and back."""
        return self.runner.encoder

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, or None."""
        return self.encoder.tokenizer

    @property
    def context(self) -> int | None:
        """How many tokens the model reads at most; None where nothing says."""
        return self.encoder.context

    @property
    def regimes(self) -> Regimes:
        """The ranges of prompt lengths within which the configuration gives no reason to behave differently."""
        return self.runner.regimes

    @property
    def n_layers(self) -> int:
        """The number of blocks. Layers go from 0 (input of the first block) to n_layers (output of the last)."""
        return self.runner.n_layers

    @property
    def hidden_size(self) -> int:
        """The number of dimensions of a hidden state, D."""
        return self.runner.hidden_size

    @property
    def vocab_size(self) -> int:
        """The number of logits, V."""
        return self.runner.vocab_size

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self.runner.dtype

    @property
    def device(self) -> torch.device:
        """The device of the last layer's states. Reading brings all states there."""
        return self.runner.device

    @property
    def lock(self) -> Any:
        """The reentrant lock that every run holds. Take it to run `model` yourself while other threads use it."""
        return self.runner.exclusive.lock

    def prompt(self, source: PromptLike) -> Prompt:
        """Tokenize a text, or wrap token ids. Raises LenscopeError if it is empty or longer than the context."""
        return self.encoder.prompt(source)

    def chat(self, turns: str | Sequence[dict[str, str]], begin: str = "") -> Prompt:
        """Make a prompt in the model's chat template: of one user turn as text, or of turns as role/content dicts.

        It ends where the assistant's turn begins, with the text `begin` of that turn.
        """
        return self.encoder.chat(turns, begin)

    # -- reading

    def read(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        layers: Layers | None = None,
        positions: Positions | None = None,
    ) -> HiddenStates:
        """Read hidden states of one prompt or several.

        The result is indexed by layer and position, as `states[12, -1]`. A list of prompts gives states with a leading
        axis for prompts, and each row is what it would be alone. The forward pass ends at the highest layer asked for.
        Raises LenscopeError for layers or positions out of range.

        Args:
            prompts: a prompt, or a list of prompts.
            layers: which layers are read, 0…n_layers; None: all.
            positions: which positions of each prompt are read; None: all.
        """
        batched, many = self.encoder.prompts(prompts)
        numbers = check_layers(slice(None) if layers is None else layers, self.n_layers, self.name)
        places = [p.positions(positions) for p in many]
        # neighbours as a slice, which no index has to be made for
        chosen = [slice(p[0], p[-1] + 1) if p and p == tuple(range(p[0], p[-1] + 1)) else list(p) for p in places]
        shape = (len(many), len(numbers), max(map(len, places)), self.hidden_size)
        out = torch.zeros(shape, dtype=self.dtype, device=self.device)
        runs: list[Capture] = []
        for group in length_groups(many, lambda short, long: exactness.reads_together(self.runner, short, long)):

            def keep(layer: int, h: Tensor, group: Sequence[int] = group) -> None:
                for at in (at for at, n in enumerate(numbers) if n == layer):
                    for row, i in enumerate(group):
                        out[i, at, : len(places[i])] = h[row, chosen[i]].to(self.device)

            together = [many[i] for i in group]
            running = Running(together, group, len(many), pad(together, "right", self.runner.input_device))
            runs.append((running, set(numbers), keep))
        self.runner.capture_all(runs)
        return HiddenStates(out, numbers, self.n_layers, tuple(many), tuple(places), batched, self.name)

    def unembed(self, h: Tensor) -> Tensor:
        """Turn hidden states (..., D) into logits (..., V), as if they were the last layer's, in float32 or wider."""
        h = as_vectors(h, "unembed")
        if h.shape[-1] != self.hidden_size:
            raise LenscopeError(
                f"unembed: states of size {h.shape[-1]}; {self.name} has states of size {self.hidden_size}"
            )
        rows = h.reshape(-1, h.shape[-1]).to(device=self.device, dtype=self.dtype)
        return wide(self.runner.own_logits(rows)).reshape(*h.shape[:-1], self.vocab_size)

    # -- editing

    @contextmanager
    def edit(self, *edits: Edit | ComputedEdit) -> Iterator[None]:
        """Run with edited states, within a `with` block: what this thread or task reads and generates.

        Edits are made in the given order. During generation the prompt's states are edited, and later tokens see them
        through the cache. Nested blocks add up. All hooks are gone after the block, whatever happened in it.
        """
        layers = check_layers([e.layer for e in edits], self.n_layers, self.name) if edits else ()
        for edit in edits:
            edit.require_finite()
        runner = self.runner
        with runner.block() as block, ExitStack() as undo:

            def edited(h: Tensor, edit: Edit | ComputedEdit) -> Tensor | None:
                running = runner.acts(block)
                return edit.apply(h, running) if running is not None and running.covers_prompt(h.shape[1]) else None

            for edit, layer in zip(edits, layers, strict=True):
                undo.callback(runner.hook(layer, lambda h, edit=edit: edited(h, edit)).remove)
            yield

    # -- generating

    @overload
    def generate(self, prompts: PromptLike, max_new_tokens: int = 20) -> Continuation: ...
    @overload
    def generate(self, prompts: list[str | Prompt] | list[str], max_new_tokens: int = 20) -> list[Continuation]: ...
    def generate(self, prompts: Any, max_new_tokens: int = 20) -> Continuation | list[Continuation]:
        """Write greedily after one prompt or several, whatever sampling the checkpoint's defaults ask for.

        Ends at an end-of-text token (which is kept) or after `max_new_tokens`. Prompts run together, padded and with a
        cache, as far as this model was seen to give the same that way; else in groups of equal length, or without a
        cache.
        """
        batched, many = self.encoder.prompts(prompts)
        max_new_tokens = count(max_new_tokens, "max_new_tokens")
        self.encoder.require_room(max(map(len, many)), max_new_tokens)
        written = generation.generate_greedily(self.runner, many, max_new_tokens)
        continuations = [
            Continuation(p, ids, tuple(self.encoder.tokens(ids)), self.encoder.decode(ids))
            for p, ids in zip(many, written, strict=True)
        ]
        return continuations if batched else continuations[0]
