"""How one language model is run: hooks at its layers, batches whose rows give what they give alone, states captured.

Knows: where to hook the blocks, what runs in which thread, which edits apply to it, what was measured of the model.
Does not know: what edits and readings mean (language_model.py), which shortcuts are exact (exactness.py), how text is
generated (generation.py).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lenscope.errors import LenscopeError
from lenscope.models.batches import PARTS, TOKENS_PER_RUN, Running
from lenscope.models.context_length import find_context
from lenscope.models.edits import EditBlock, open_blocks
from lenscope.models.exclusive_runs import Exclusive
from lenscope.models.length_regimes import Regimes
from lenscope.models.load_options import dtype_name
from lenscope.models.measurements import Measurements
from lenscope.models.prompts import Encoder
from lenscope.models.readout import find_readout, is_stubbed
from lenscope.models.residual_stream import (
    Anatomy,
    forward_kwargs,
    input_state,
    observe,
    output_state,
    require_causal,
    trial_text,
    with_input_state,
    with_output_state,
)
from lenscope.models.runs_by_block import take_turns
from lenscope.models.weight_stream import stream_of

# bytes of states that share a reading of streamed weights
STREAMED_STATES = 2 << 30
# a batch, the layers whose states (B, T, D) are wanted, and what gets each
Capture = tuple[Running, Collection[int], Callable[[int, Tensor], None]]


class EnoughRead(Exception):
    """Raised from a hook once everything asked for has been read: the rest of the forward pass is not needed."""


class Runner:
    """Runs one model, for whatever reads, edits or measures it: `LM.runner`.

    `anatomy` is where its blocks and stream are, `readout` (`verified`) how its last states become logits, `regimes`
    the ranges of lengths in which it behaves alike, `measured` what was measured of it so far, `exclusive` the lock
    that every run holds, `encoder` its tokenizer, `stream` where its blocks' weights come from if not from memory. A
    model whose modules or configuration changed is verified anew before its next run, and all that was measured of it
    forgotten.

    Raises LenscopeError if the model is not causal or its readout cannot be verified.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, name: str) -> None:
        self.model = model
        self.name = name
        self._running: Running | None = None
        self._open = 0
        # of a model with an adapter, what runs the plain one
        self.plain: Runner | None = None
        self.exclusive = Exclusive(model, self._renew)
        self.measured = Measurements(self.exclusive.lock)
        self.stream = stream_of(model)
        self._verify(observe(model))
        n_inputs = min(self.anatomy.n_inputs, self.vocab_size)
        self.encoder = Encoder(tokenizer, n_inputs, find_context(self.anatomy), name)

    def _verify(self, anatomy: Anatomy) -> None:
        """Take up what was observed of the model, with a readout that gives its logits; LenscopeError without one."""
        verified = find_readout(anatomy)
        self.anatomy, self.verified, self.readout = anatomy, verified, verified.readout
        self.exclusive.watch(anatomy)
        self.regimes = Regimes(self.model.config.get_text_config())
        self.measured.forget()

    def _renew(self, change: str) -> None:
        """Verify the model anew where its modules or its configuration are not those that were verified before.

        Raises LenscopeError where a size, dtype or device is another one, inside edits, and for a compiled model.
        """
        what = f"{self.name}: {change} since it was loaded"
        if self._open or "compilation" in change:
            raise LenscopeError(f"{what}; load it again with lenscope.load((model, tokenizer))")
        try:
            anatomy = observe(self.model)
            if anatomy.sizes != self.anatomy.sizes:
                raise LenscopeError("its sizes, dtype or device are others")
            self._verify(anatomy)
        except LenscopeError as error:
            raise LenscopeError(f"{what}, and {error}; load it again with lenscope.load((model, tokenizer))") from error

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
    def input_device(self) -> torch.device:
        """Where token ids are put before they are run."""
        return self.anatomy.ids.device

    @property
    def tokens_together(self) -> int:
        """How many tokens are read together with all their layers: more where that reads all weights from disk."""
        few = TOKENS_PER_RUN // PARTS
        if self.stream is None:
            return few
        return max(few, STREAMED_STATES // ((self.n_layers + 1) * self.hidden_size * self.dtype.itemsize))

    def own_logits(self, h: Tensor) -> Tensor:
        """Logits (N, V) of the last layer's states (N, D), in the model's own dtype."""
        with self.exclusive.alone(), torch.no_grad():
            return self.readout.columns(self.readout.prepare(h), 0, self.vocab_size)

    # -- edits

    @property
    def editing(self) -> bool:
        """Whether a `with` block that edits this model is open in this thread or task, or the one below its adapter."""
        return any(block.runner in (self, self.plain) for block in open_blocks.get())

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
            with self.exclusive.lock:
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
        return None if running.without_edits or block not in running.blocks else running

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

    # -- runs

    @contextmanager
    def running(self, running: Running) -> Iterator[None]:
        """Say to the edits what runs within the block, without gradients, and keep other threads from running."""
        self._require_eval()

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
        for length in () if running.without_edits else set(running.batch.lengths):
            self.require_causal_at(length)
        reading = _Reading(self, running, layers, keep)
        with self.running(running), ExitStack() as undo:
            for layer in layers:
                undo.callback(self.hook(layer, partial(reading.take, layer)).remove)
            reading.run()

    def capture_all(self, runs: Sequence[Capture]) -> None:
        """`capture` several batches, each as if it ran alone.

        Where weights are streamed from disk, all of them go through a block before any goes on, so that weights are
        read once; with edits in force, one after the other.
        """
        # "dynamic" rotary embeddings keep the length of the batch that began last
        if self.stream is None or self.editing or self.exclusive.dynamic:
            for running, layers, keep in runs:
                self.capture(running, layers, keep)
            return
        lengths = {length for running, _, _ in runs if not running.without_edits for length in running.batch.lengths}
        unmeasured: dict[int, int] = {}
        for length in sorted(lengths):
            regime = self.regimes.of(length)
            if regime and not self.measured.holds(("causal", regime)):
                unmeasured.setdefault(regime, length)
        together = [*runs, *(self._causal_trial(length) for length in unmeasured.values())]
        readings = [_Reading(self, *run) for run in together]
        with self.exclusive.alone(), ExitStack() as undo:
            self._require_eval()
            for layer in sorted({layer for reading in readings for layer in reading.layers}):
                undo.callback(self.hook(layer, partial(_take_here, layer)).remove)
            take_turns(self.stream, [reading.run_in_turn for reading in readings])
        for regime in unmeasured:
            self.measured.once(("causal", regime), lambda: True)

    def read_plain(self, ids: list[int], layer: int | None = None) -> Tensor:
        """The states (T, D) of some ids at a layer, by default the last, whatever edits are in force."""
        states: list[Tensor] = []
        prompt = self.encoder.prompt(ids)
        running = Running.of_prompts([prompt], self.input_device, without_edits=True)
        self.capture(running, {self.n_layers if layer is None else layer}, lambda _, h: states.append(h[0].clone()))
        return states[0]

    # -- what a run must give

    def _require_eval(self) -> None:
        if self.exclusive.training:
            raise LenscopeError(
                f"{self.name} is in training mode, where dropout changes the numbers: call model.eval()"
            )

    def require_finite(self, h: Tensor, layer: int) -> None:
        """Raise LenscopeError where states of a layer hold NaN or infinity: whatever is read of them means nothing."""
        if h.numel():
            self.require_finite_ends([(layer, torch.stack(torch.aminmax(h.detach())))])

    def require_finite_ends(self, ends: Sequence[tuple[int, Tensor]]) -> None:
        """As `require_finite`, of the least and the largest number (2,) of states of several layers.

        An accelerator is waited for once, and not after each layer.
        """
        for device in {least.device for _, least in ends}:
            here = [(layer, t) for layer, t in ends if t.device == device]
            finite = torch.stack([torch.isfinite(t).all() for _, t in here]).tolist()
            if not all(finite):
                layer = here[finite.index(False)][0]
                dtype = dtype_name(self.dtype)
                wider = "" if self.dtype in (torch.float32, torch.float64) else "; load it in float32 or bfloat16"
                raise LenscopeError(
                    f"layer {layer}: {self.name} has states that are NaN or infinite there in {dtype}{wider}"
                )

    def require_causal_at(self, length: int) -> None:
        """Raise LenscopeError where, at this length, a later token changes earlier states; measured once for a range.

        Short prompts were looked at when the model was loaded.
        """
        regime = self.regimes.of(length)
        if regime:
            self.measured.once(("causal", regime), lambda: self._compare_causal(length))

    def _compare_causal(self, length: int) -> bool:
        self.capture(*self._causal_trial(length))
        return True

    def _causal_trial(self, length: int) -> Capture:
        ids = trial_text(self.anatomy, length)
        other = [*ids[:-1], (ids[-1] + self.anatomy.n_inputs // 2) % self.anatomy.n_inputs]
        prompts = [self.encoder.prompt(ids), self.encoder.prompt(other)]

        def compare(layer: int, h: Tensor) -> None:
            require_causal(self.model, layer, h[1, :-1], h[0, :-1])

        running = Running.of_prompts(prompts, self.input_device, without_edits=True)
        return running, range(self.n_layers + 1), compare


class _Reading:
    """A batch whose states are captured: what is still missing of it, and the ends of what was seen."""

    def __init__(
        self, runner: Runner, running: Running, layers: Collection[int], keep: Callable[[int, Tensor], None]
    ) -> None:
        self.runner, self.batch, self.layers, self.keep = runner, running.batch, set(layers), keep
        self.missing, self.highest = set(layers), max(layers)
        self.ends: list[tuple[int, Tensor]] = []

    def take(self, layer: int, h: Tensor) -> None:
        """Give the state of a layer to `keep`, if it is wanted."""
        if layer in self.layers:
            self.missing.discard(layer)
            if h.numel():
                seen = h.masked_fill(self.batch.mask.to(h.device)[..., None] == 0, 0) if self.batch.padded else h
                self.ends.append((layer, torch.stack(torch.aminmax(seen.detach()))))
            self.keep(layer, h)
        if layer == self.highest:
            raise EnoughRead

    def run(self) -> None:
        """Run the model on the batch; LenscopeError for states that are not finite, and layers that did not run."""
        runner, model = self.runner, self.runner.model
        mask = {"attention_mask": self.batch.mask} if self.batch.padded else {}
        try:
            model(input_ids=self.batch.ids, **forward_kwargs(model, use_cache=False, **mask))
        except EnoughRead:
            pass
        except Exception:
            # what states that are not finite lead to says less than that they are not
            runner.require_finite_ends(self.ends)
            raise
        runner.require_finite_ends(self.ends)
        if self.missing:
            raise LenscopeError(
                f"layer {min(self.missing)}: did not run; {runner.name} was changed after loading, load it again"
            )

    def run_in_turn(self) -> None:
        """As `run`, beside other batches, in a thread of its own."""
        _taking.set(self.take)
        self.run()


# what takes the states of the batch that runs in this thread
_taking: ContextVar[Callable[[int, Tensor], None] | None] = ContextVar("lenscope_taking", default=None)


def _take_here(layer: int, h: Tensor) -> None:
    take = _taking.get()
    if take is not None:
        take(layer, h)
