"""What a sweep over source layers x target layers is measured against: two plain ways to run it, and a FLOP floor.

Both plain ways read one source prompt's last token, write it over the last token of a target prompt, and use nothing
but transformers and hooks: rows in batches (`batched`, over whole prompts or from a prefix cached once), and cell by
cell with a source pass of its own (`one_by_one`, the way of the Patchscopes authors' code). The floor is the matrix
products alone.

A layer is the residual stream after that many blocks, the last one before the final norm. The model is a transformers
causal LM laid out as Llama is: `model.model.layers`, `lm_head`, no biases.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, PreTrainedModel

TOP = 5

Cell = tuple[int, int]  # source layer, target layer


@dataclass(frozen=True)
class CellTokens:
    """One row per cell, in the order of the cells: token ids (N, K), and for the next token their log-probabilities.

    K is the five likeliest next tokens, or the tokens written one after another.
    """

    ids: Tensor
    log_probs: Tensor | None = None


@dataclass(frozen=True)
class Floor:
    seconds: float
    flops: int


def full_grid(n_layers: int) -> list[Cell]:
    """Every cell, source by source."""
    return [(s, t) for s in range(n_layers + 1) for t in range(n_layers + 1)]


def spread(cells: Sequence[Cell], count: int) -> list[Cell]:
    """`count` cells at even distances: of different target layers too, unless the grid's side divides the count."""
    return [cells[(2 * n + 1) * len(cells) // (2 * count)] for n in range(count)]


# -- rows in batches


@torch.no_grad()
def batched(
    model: PreTrainedModel,
    source: Sequence[int],
    target: Sequence[int],
    cells: Sequence[Cell] | None = None,
    batch: int = 64,
    new_tokens: int = 0,
    share_prefix: bool = False,
) -> CellTokens:
    """The cells (default: the full grid) in batches of `batch` rows, from one source pass.

    `new_tokens` 0 gives the likeliest next tokens, else greedy continuations of that length. With `share_prefix` the
    target's tokens before the last one run once, and every batch goes on from copies of their cache.
    """
    cells = full_grid(len(model.model.layers)) if cells is None else cells
    states = last_states(model, source)
    # Rows that patch at one layer stand together, so that a batch has few hooks.
    order = sorted(range(len(cells)), key=lambda n: cells[n][1])
    prefix = cached(model, target[:-1]) if share_prefix else None
    parts = []
    for start in range(0, len(order), batch):
        part = [cells[n] for n in order[start : start + batch]]
        ids = torch.tensor([target], device=model.device).expand(len(part), -1)
        with ExitStack() as undo:
            for layer in {t for _, t in part}:
                rows = [row for row, (_, t) in enumerate(part) if t == layer]
                vectors = states[[part[row][0] for row in rows]]
                undo.enter_context(patched(model, layer, rows, vectors))
            past = None if prefix is None else copied(prefix, len(part))
            parts.append(continued(model, ids, new_tokens, past) if new_tokens else likeliest(model, ids, past))
    back = torch.tensor(order).argsort()
    log_probs = [p.log_probs for p in parts if p.log_probs is not None]
    return CellTokens(torch.cat([p.ids for p in parts])[back], torch.cat(log_probs)[back] if log_probs else None)


# -- cell by cell


@torch.no_grad()
def one_by_one(
    model: PreTrainedModel, source: Sequence[int], target: Sequence[int], cells: Sequence[Cell], new_tokens: int = 0
) -> CellTokens:
    """The cells one after another, each with a source pass and a target pass of its own.

    Kinder than the authors' code in one respect, the head: theirs unembeds every position of both passes.
    """
    ids = torch.tensor([target], device=model.device)
    parts = []
    for source_layer, target_layer in cells:
        vector = last_states(model, source)[source_layer : source_layer + 1]
        with patched(model, target_layer, [0], vector):
            parts.append(continued(model, ids, new_tokens) if new_tokens else likeliest(model, ids))
    log_probs = [p.log_probs for p in parts if p.log_probs is not None]
    return CellTokens(torch.cat([p.ids for p in parts]), torch.cat(log_probs) if log_probs else None)


# -- what both use


@torch.no_grad()
def last_states(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """The last token's states at every layer, (layers, D)."""
    blocks = model.model.layers
    states: list[Tensor] = []
    # Not `output_hidden_states`: it ends with the state after the final norm, and leaves hooks behind for good.
    with ExitStack() as undo:
        first = blocks[0].register_forward_pre_hook(lambda _, args: states.append(args[0][0, -1]))
        undo.callback(first.remove)
        for block in blocks:
            undo.callback(block.register_forward_hook(lambda _, args, output: states.append(output[0, -1])).remove)
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False, logits_to_keep=1)
    return torch.stack(states)


@contextmanager
def patched(model: PreTrainedModel, layer: int, rows: list[int], vectors: Tensor) -> Iterator[None]:
    """Within the block, the first pass has `vectors` in its last place, in `rows`.

    Passes that follow are decoding steps, which see the patch through the cache.
    """

    def write(h: Tensor) -> None:
        h[rows, -1] = vectors
        hook.remove()

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        write(args[0])

    def after(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        write(output)

    blocks = model.model.layers
    hook = blocks[layer - 1].register_forward_hook(after) if layer else blocks[0].register_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


def cached(model: PreTrainedModel, ids: Sequence[int]) -> Cache:
    read = torch.tensor([ids], device=model.device)
    return model(input_ids=read, use_cache=True, logits_to_keep=1).past_key_values


def copied(cache: Cache, rows: int) -> Cache:
    own = copy.deepcopy(cache)
    own.batch_repeat_interleave(rows)
    return own


def likeliest(model: PreTrainedModel, ids: Tensor, past: Cache | None = None) -> CellTokens:
    fed = ids if past is None else ids[:, past.get_seq_length() :]
    out = model(input_ids=fed, past_key_values=past, use_cache=past is not None, logits_to_keep=1)
    logits = out.logits[:, -1]
    top = logits.topk(TOP)
    return CellTokens(top.indices, top.values - logits.logsumexp(-1, keepdim=True))


def continued(model: PreTrainedModel, ids: Tensor, new_tokens: int, past: Cache | None = None) -> CellTokens:
    """Greedy, exactly `new_tokens` long: an end-of-text token is written like any other and ends nothing."""
    pinned = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=new_tokens, eos_token_id=None, pad_token_id=0, use_cache=True
    )
    # generate() fills what a config leaves open from the model's own, which would bring the end-of-text token back.
    own, model.generation_config = model.generation_config, pinned
    try:
        out = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=past)
    finally:
        model.generation_config = own
    return CellTokens(out[:, ids.shape[1] :])


# -- the floor


def next_token_rows(n_layers: int) -> list[int]:
    """Rows per block, and last of the head, for the full grid's next tokens.

    A block has to run the rows that were patched before it and, for all others, the one state that they share.
    """
    side = n_layers + 1
    return [side * (block + 1) + 1 for block in range(n_layers)] + [side * side]


def decoding_rows(n_layers: int, written: Tensor | None = None, new_tokens: int = 0) -> list[list[int]]:
    """The same for each later token of the full grid, whose first token `next_token_rows` has paid for.

    Without `written` every row runs through all blocks, `new_tokens` - 1 times. With it, the tokens (layers, layers,
    K) that the grid wrote, cells that wrote the same so far share each block below their patches: nothing there tells
    them apart.
    """
    side = n_layers + 1
    if written is None:
        return [[side * side] * (n_layers + 1) for _ in range(new_tokens - 1)]
    steps = []
    for step in range(1, written.shape[-1]):
        own = [side * (block + 1) for block in range(n_layers)]
        shared = [len(written[:, block + 1 :, :step].flatten(0, 1).unique(dim=0)) for block in range(n_layers)]
        steps.append([a + b for a, b in zip(own, shared, strict=True)] + [side * side])
    return steps


@torch.no_grad()
def floor(model: PreTrainedModel, prefix: int, passes: Sequence[Sequence[int]]) -> Floor:
    """Time and FLOPs of the products with the model's weights: `prefix` tokens through the blocks, then the passes.

    Each pass says how many rows every block gets and, last, the head. Attention, norms and the source pass are left
    out. Products are written into buffers made beforehand, as a large result that malloc gives back costs page faults.
    The first call in a process also pays for touching the weights.
    """
    blocks = [[m.weight.t() for m in block.modules() if isinstance(m, nn.Linear)] for block in model.model.layers]
    head = model.lm_head.weight.t()
    work: list[tuple[int, Tensor]] = [(prefix, w) for weights in blocks for w in weights]
    for rows in passes:
        for weights, n in zip([*blocks, [head]], rows, strict=True):
            work += [(n, w) for w in weights]
    most = {w.shape: 0 for _, w in work}
    for n, w in work:
        most[w.shape] = max(most[w.shape], n)
    inputs = {width: torch.randn(max(n for s, n in most.items() if s[0] == width), width) for width, _ in most}
    outputs = {shape: torch.zeros(n, shape[1]) for shape, n in most.items()}
    began = time.perf_counter()
    for n, w in work:
        torch.mm(inputs[w.shape[0]][:n], w, out=outputs[w.shape][:n])
    return Floor(time.perf_counter() - began, sum(2 * n * w.numel() for n, w in work))
