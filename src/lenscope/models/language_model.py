"""The language model as embed → blocks → unembed: reading, editing, generating.

Knows: where to hook the blocks, how to run batches so that each row gives what it gives alone.
Does not know: how blocks and readout were found (anatomy.py, readout.py), how text is generated (generation.py), what
edits and readings mean.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lenscope.errors import LenscopeError
from lenscope.models import exactness, generation
from lenscope.models.batches import length_groups, pad
from lenscope.models.context_length import find_context
from lenscope.models.deviations import TOLERANCE
from lenscope.models.edits import Edit, EditBlock, Running, open_blocks
from lenscope.models.exclusive_runs import Exclusive
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.inputs import count
from lenscope.models.layers import Layers, check_layers
from lenscope.models.length_regimes import Regimes
from lenscope.models.prompts import Encoder, Positions, Prompt
from lenscope.models.readout import find_readout, is_stubbed, wide
from lenscope.models.residual_stream import (
    Anatomy,
    first_bad_parameter,
    forward_kwargs,
    input_state,
    observe,
    output_state,
    with_input_state,
    with_output_state,
)

PromptLike = str | Prompt | Sequence[int]


class _Enough(Exception):
    """Raised from a hook once everything asked for has been read: the rest of the forward pass is not needed."""


@dataclass(frozen=True)
class Continuation:
    """What the model wrote after a prompt: token ids, each token's text, and the text as a whole."""

    prompt: Prompt
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    text: str


class LM:
    """A frozen causal language model with a verified readout. Make one with `lenscope.load`.

    Raises LenscopeError if weights or buffers hold NaN, the model is not causal, or its readout cannot be verified.
    The model is put into eval mode; its weights are never changed.
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
        # weights in its files that the model has no place for
        self.unused: tuple[str, ...] = ()
        self._running: Running | None = None
        self._open = 0
        self.exclusive = Exclusive(model, self._renew)
        self._verify(observe(model))
        self.context = find_context(self.anatomy)
        self.encoder = Encoder(tokenizer, min(self.anatomy.n_inputs, self.vocab_size), self.context, name)

    def _verify(self, anatomy: Anatomy) -> None:
        """Take up what was observed of the model, with a readout that gives its logits; LenscopeError without one."""
        verified = find_readout(anatomy)
        self.anatomy, self.verified, self.readout = anatomy, verified, verified.readout
        self.exclusive.watch(anatomy)
        self.regimes = Regimes(self.model.config.get_text_config())
        self._tolerance: float | None = None
        # what was measured of this model: by what, and for which ranges of lengths
        self.measured: dict[tuple[Any, ...], Any] = {}

    def _renew(self, change: str) -> None:
        """Verify the model anew where its modules or its configuration are not those that were verified before.

        Raises LenscopeError where a size, dtype or device is another one, inside edits, and for a compiled model.
        """
        told = f"{self.name}: {change} since it was loaded"
        if self._open or "compilation" in change:
            raise LenscopeError(f"{told}; load it again with lenscope.load((model, tokenizer))")
        try:
            anatomy = observe(self.model)
            if anatomy.sizes != self.anatomy.sizes:
                raise LenscopeError("its sizes, dtype or device are others")
            self._verify(anatomy)
        except LenscopeError as error:
            raise LenscopeError(f"{told}, and {error}; load it again with lenscope.load((model, tokenizer))") from error

    def __repr__(self) -> str:
        return f"LM({self.name}: {self.n_layers} layers, D {self.hidden_size}, V {self.vocab_size}, {self.dtype})"

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, or None."""
        return self.encoder.tokenizer

    @property
    def n_layers(self) -> int:
        """The number of blocks; layers run from 0 (the first block's input) to n_layers (the last block's output)."""
        return self.anatomy.n_layers

    @property
    def hidden_size(self) -> int:
        """D: the size of a hidden state."""
        return self.anatomy.stream.width

    @property
    def vocab_size(self) -> int:
        """V: the number of logits."""
        return self.anatomy.logits.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self.anatomy.states[-1].dtype

    @property
    def device(self) -> torch.device:
        """Where the last layer's states are: reading brings all states there."""
        return self.anatomy.states[-1].device

    @property
    def lock(self) -> Any:
        """The reentrant lock that every run of the model holds: to run the module by hand beside other threads."""
        return self.exclusive.lock

    @property
    def editing(self) -> bool:
        """Whether a `with` block that edits this model is open in this thread or task."""
        return any(block.lm is self for block in open_blocks.get())

    def prompt(self, source: PromptLike) -> Prompt:
        """Tokenize a text, or wrap token ids. Raises LenscopeError if it is empty or longer than the context."""
        return self.encoder.prompt(source)

    def chat(self, turns: str | Sequence[dict[str, str]]) -> Prompt:
        """A prompt in the model's chat template: one user turn as text, or turns as role/content dicts."""
        return self.encoder.chat(turns)

    # -- reading

    def read(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        layers: Layers | None = None,
        positions: Positions | None = None,
    ) -> HiddenStates:
        """Hidden states at `layers` (default: all, 0…n_layers) and `positions` (default: all) of one prompt or several.

        A list of prompts gives states with a batch axis; each row is what it would be alone. The forward pass ends
        at the highest layer asked for. Raises LenscopeError for layers or positions out of range.
        """
        batched, many = self.prompts(prompts)
        numbers = check_layers(slice(None) if layers is None else layers, self.n_layers, self.name)
        places = [p.positions(positions) for p in many]
        shape = (len(many), len(numbers), max(map(len, places)), self.hidden_size)
        out = torch.zeros(shape, dtype=self.dtype, device=self.device)
        for group in length_groups(many, lambda short, long: exactness.reads_together(self, short, long)):

            def keep(layer: int, h: Tensor, group: Sequence[int] = group) -> None:
                for at in (at for at, n in enumerate(numbers) if n == layer):
                    for row, i in enumerate(group):
                        out[i, at, : len(places[i])] = h[row, list(places[i])].to(self.device)

            some = [many[i] for i in group]
            running = Running(some, group, len(many), pad(some, "right", self.anatomy.ids.device))
            self.capture(running, set(numbers), keep)
        return HiddenStates(out, numbers, self.n_layers, tuple(many), tuple(places), batched, self.name)

    def unembed(self, h: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D) as if they were the last layer's, in float32 or wider."""
        if h.shape[-1] != self.hidden_size:
            raise LenscopeError(
                f"unembed: states of size {h.shape[-1]}; {self.name} has states of size {self.hidden_size}"
            )
        rows = h.reshape(-1, h.shape[-1]).to(device=self.device, dtype=self.dtype)
        return wide(self.own_logits(rows)).reshape(*h.shape[:-1], self.vocab_size)

    def own_logits(self, h: Tensor) -> Tensor:
        """Logits (N, V) of the last layer's states (N, D), in the model's own dtype."""
        with self.exclusive.alone(), torch.no_grad():
            return self.readout.columns(self.readout.prepare(h), 0, self.vocab_size)

    # -- editing

    @contextmanager
    def edit(self, *edits: Edit) -> Iterator[None]:
        """Within the block, what this thread or task reads and generates runs with `edits` made, in the given order.

        During generation the prompt's states are edited; later tokens see them through the cache. Nested blocks
        add up. All hooks are gone after the block, whatever happened in it.
        """
        layers = check_layers([e.layer for e in edits], self.n_layers, self.name) if edits else ()
        for edit in edits:
            edit.require_finite()
        with self.block() as block, ExitStack() as undo:
            for edit, layer in zip(edits, layers, strict=True):
                undo.callback(self.hook(layer, lambda h, edit=edit: self._edited(h, edit, block)).remove)
            yield

    @contextmanager
    def block(self) -> Iterator[EditBlock]:
        """A `with` block in which hooks change what this thread or task runs, and nobody else (see `acts`)."""
        block = EditBlock(self)
        with self.exclusive.alone():
            self._open += 1
        open_blocks.set((*open_blocks.get(), block))
        try:
            yield block
        finally:
            with self.lock:
                self._open -= 1
            open_blocks.set(tuple(b for b in open_blocks.get() if b is not block))

    def acts(self, block: EditBlock) -> Running | None:
        """The running batch that the hooks of an open block are to change; None where it is not theirs.

        Raises LenscopeError where the model is called by hand inside the block: nothing says what runs then.
        """
        running = self._running
        if running is None:
            if block in open_blocks.get():
                raise LenscopeError(
                    "inside edit(), run the model through read or generate: a bare call has no positions"
                )
            return None
        return None if running.probe or block not in running.blocks else running

    def _edited(self, h: Tensor, edit: Edit, block: EditBlock) -> Tensor | None:
        running = self.acts(block)
        return edit.apply(h, running) if running is not None and running.covers_prompt(h.shape[1]) else None

    def hook(self, layer: int, change: Any) -> Any:
        """Call `change` with the (B, T, D) state at `layer`; what it returns, if not None, takes its place."""
        stream = self.anatomy.stream

        def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if is_stubbed(block):
                return None
            h = change(stream.pack(input_state(args, kwargs)))
            return None if h is None else with_input_state(args, kwargs, stream.unpack(h))

        def after(block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if is_stubbed(block):
                return None
            h = change(stream.pack(output_state(output)))
            return None if h is None else with_output_state(output, stream.unpack(h))

        if layer == 0:
            first = self.anatomy.blocks[0]
            return self.exclusive.hook(lambda: first.register_forward_pre_hook(before, with_kwargs=True))
        return self.exclusive.hook(lambda: self.anatomy.blocks[layer - 1].register_forward_hook(after))

    @contextmanager
    def watching(self, layer: int, look: Callable[[Tensor], None]) -> Iterator[None]:
        """Within the block `look` sees the (B, T, D) state at a layer whenever the model runs, in any thread."""
        hook = self.hook(layer, look)
        try:
            yield
        finally:
            hook.remove()

    # -- generating

    @overload
    def generate(self, prompts: PromptLike, max_new_tokens: int = 20) -> Continuation: ...
    @overload
    def generate(self, prompts: list[str | Prompt] | list[str], max_new_tokens: int = 20) -> list[Continuation]: ...
    def generate(self, prompts: Any, max_new_tokens: int = 20) -> Continuation | list[Continuation]:
        """Greedy continuations of one prompt or several, whatever sampling the checkpoint's defaults ask for.

        Ends at an end-of-text token (which is kept) or after `max_new_tokens`. Prompts run together, padded on the
        left with explicit positions, from a cache, as far as this model was seen to give the same that way; else in
        groups of equal length, else without a cache.
        """
        batched, many = self.prompts(prompts)
        max_new_tokens = count(max_new_tokens, "max_new_tokens")
        longest = max(map(len, many))
        if self.context is not None and longest + max_new_tokens > self.context:
            raise LenscopeError(
                f"{longest} tokens of prompt and {max_new_tokens} new ones: {self.name} reads at most {self.context}"
            )
        written = generation.generate_greedily(self, many, max_new_tokens)
        done = [
            Continuation(p, ids, tuple(self.encoder.tokens(ids)), self.encoder.decode(ids))
            for p, ids in zip(many, written, strict=True)
        ]
        return done if batched else done[0]

    # -- running

    def prompts(self, prompts: Any) -> tuple[bool, list[Prompt]]:
        """Whether several prompts were given, and the prompts; a list of integers is one prompt's ids.

        A prompt is a text, a list, array or tensor of ids, or what the tokenizer returned; several are a list or column
        of them, an array or tensor of two dimensions, or an iterator. Raises LenscopeError for anything else.
        """
        return self.encoder.prompts(prompts)

    @contextmanager
    def running(self, running: Running) -> Iterator[None]:
        """Tell the edits what runs within the block, without gradients, and keep other threads from running."""
        if self.exclusive.training:
            raise LenscopeError(
                f"{self.name} is in training mode, where dropout changes the numbers: call model.eval()"
            )

        def count(*_: Any) -> None:
            running.passes += 1

        with self.exclusive.alone():
            outer, self._running = self._running, running
            running.blocks = open_blocks.get()
            # ahead of the edits of layer 0, which are hooks of the same block
            counter = self.anatomy.blocks[0].register_forward_pre_hook(count, prepend=True)
            try:
                with torch.no_grad():
                    yield
            finally:
                counter.remove()
                self._running = outer

    def capture(self, running: Running, layers: Collection[int], keep: Callable[[int, Tensor], None]) -> None:
        """Run a batch, padded on the right, up to the highest of `layers`; `keep` gets each state (B, T, D).

        Raises LenscopeError for states that are not finite, and where a layer that is asked for did not run.
        """
        batch, highest, ran = running.batch, max(layers), set()
        for length in () if running.probe else set(batch.lengths):
            exactness.require_causal_at(self, length)

        def take(layer: int, h: Tensor) -> None:
            ran.add(layer)
            self.require_finite(h[batch.mask.to(h.device, torch.bool)] if batch.padded else h, layer)
            keep(layer, h)
            if layer == highest:
                raise _Enough

        with self.running(running), ExitStack() as undo:
            for layer in layers:
                undo.callback(self.hook(layer, lambda h, layer=layer: take(layer, h)).remove)
            mask = {"attention_mask": batch.mask} if batch.padded else {}
            try:
                self.model(input_ids=batch.ids, **forward_kwargs(self.model, use_cache=False, **mask))
            except _Enough:
                pass
        if ran != set(layers):
            missing = min(set(layers) - ran)
            raise LenscopeError(f"layer {missing}: did not run; {self.name} was changed after loading, load it again")

    def require_finite(self, h: Tensor, layer: int) -> None:
        """Raise LenscopeError where states of a layer hold NaN or infinity: whatever is read of them means nothing."""
        if h.numel():
            low, high = torch.aminmax(h.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                dtype = str(self.dtype).removeprefix("torch.")
                wider = "" if self.dtype in (torch.float32, torch.float64) else "; load it in float32 or bfloat16"
                raise LenscopeError(
                    f"layer {layer}: {self.name} has states that are NaN or infinite there in {dtype}{wider}"
                )

    def tolerance(self) -> float:
        """The deviation up to which two ways of running this model count as the same.

        The dtype's own, or three times what the model rounds by itself, if that is more (`exactness.own_rounding`).
        """
        if self._tolerance is None:
            self._tolerance = max(TOLERANCE.get(self.dtype, 1e-4), 3 * exactness.own_rounding(self))
        return self._tolerance

    def probe(self, ids: list[int], layer: int | None = None) -> Tensor:
        """The states (T, D) of some ids at a layer, by default the last, whatever edits are in force."""
        kept: list[Tensor] = []
        prompt = self.prompt(ids)
        running = Running([prompt], [0], 1, pad([prompt], "right", self.anatomy.ids.device), probe=True)
        self.capture(running, {self.n_layers if layer is None else layer}, lambda _, h: kept.append(h[0].clone()))
        return kept[0]
