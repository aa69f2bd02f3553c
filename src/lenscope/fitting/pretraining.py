"""Pretraining: a small causal language model trained from scratch on text, with checkpoints along the way.

Knows: a vocabulary learned from text, random weights, steps and their sizes, how a killed training goes on exactly, the
folders that checkpoints are. Does not know: how text becomes rows (corpus.py), what checkpoints are read for.
"""

import copy
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers import logging as transformers_logging

from lenscope.errors import LenscopeError
from lenscope.files import weights_folder as artifacts
from lenscope.files.writing import write_text
from lenscope.fitting.optimizers import orthogonal
from lenscope.models.identity import model_hash
from lenscope.models.language_model import LM
from lenscope.models.load_options import dtype_name
from lenscope.models.loading import load
from lenscope.models.precision import half_precision, low_precision
from lenscope.models.progress import Progress
from lenscope.models.spelling import BETWEEN
from lenscope.text.corpus import Corpus
from lenscope.text.documents import DocumentStream

HEAD = 32
# of AdamW: how slowly its means of gradients and of their squares change, and its step beside one of Muon
FIRST, SECOND, ADAM = 0.9, 0.95, 0.25
IDENTITY, STATE = "pretraining.json", "state"
# folders as written here, as transformers' Trainer writes them, and as the Pythia models' revisions are called
NAMED = re.compile(r"(?:step|checkpoint)-?(\d+)")


@final
@dataclass(frozen=True)
class Plan:
    """How a model is trained: `steps` of `rows` rows each, and a checkpoint `every` so many steps.

    The matrices of blocks take steps of Muon, of the size `rate` · √(outputs / inputs), all else of AdamW, of the size
    `rate` / 4; both grow for the first `warmup` steps and then fall as a cosine to a tenth, as those of Pythia do
    (Biderman et al. 2023). Gradients have a global norm of 1 at most.
    """

    steps: int = 1000
    rows: int = 8
    every: int = 20
    rate: float = 0.02
    warmup: int = 20
    momentum: float = 0.95

    def __post_init__(self) -> None:
        if min(self.steps, self.rows, self.every, self.warmup) < 1 or self.rate <= 0 or not 0 <= self.momentum < 1:
            raise LenscopeError(f"{self}: give positive numbers, and a momentum of at least 0 and below 1")

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps after which a checkpoint is left: 0, the powers of 2 below `every`, its multiples, the last."""
        powers = (2**n for n in range(self.every.bit_length()) if 2**n < min(self.every, self.steps))
        return (0, *powers, *range(self.every, self.steps, self.every), self.steps)

    def decay(self, step: int) -> float:
        """The size of a step, as a part of the largest."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.55 + 0.45 * math.cos(math.pi * done)


@final
@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training, each a folder that `lenscope.load` reads; `steps` are in their order."""

    folder: Path
    steps: tuple[int, ...]

    @staticmethod
    def in_folder(folder: str | os.PathLike[str]) -> "Checkpoints":
        """Those in a folder: subfolders named step-20, step20 or checkpoint-20; none if there are no such."""
        folder = Path(folder)
        named = (NAMED.fullmatch(p.name) for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else ()
        return Checkpoints(folder, tuple(sorted({int(m[1]) for m in named if m})))

    def path(self, step: int) -> Path:
        """The folder of a step; LenscopeError if there is no such checkpoint."""
        for path in self.folder.iterdir():
            match = NAMED.fullmatch(path.name)
            if match and int(match[1]) == step:
                return path
        raise LenscopeError(f"step {step}: {self.folder} has checkpoints of {', '.join(map(str, self.steps))}")

    def load(self, step: int) -> LM:
        """The model as it was after a step."""
        return load(self.path(step))


def blank(
    texts: Iterable[str],
    *,
    vocabulary: int = 2048,
    layers: int = 8,
    hidden_size: int = 128,
    context: int = 256,
    seed: int = 0,
) -> LM:
    """A Llama with random weights in float32, and a byte-level BPE vocabulary learned from texts.

    Heads have 32 dimensions, MLPs 8/3 as many as the states; embeddings of inputs and outputs are apart, as in Pythia.
    Raises LenscopeError for sizes that do not fit.

    Args:
        texts: what the tokenizer is trained on.
        vocabulary: tokens of the tokenizer.
        layers: blocks of the model.
        hidden_size: numbers of a state.
        context: tokens that the model reads at most.
        seed: fixes the first weights.
    """
    if vocabulary < 257 or layers < 1 or context < 2 or hidden_size < HEAD or hidden_size % HEAD:
        raise LenscopeError(
            f"vocabulary {vocabulary}, layers {layers}, hidden_size {hidden_size}, context {context}: give at least "
            f"257, 1, {HEAD} (a multiple of it) and 2"
        )
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BETWEEN], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=BETWEEN)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=round(hidden_size * 8 / 3 / HEAD) * HEAD,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // HEAD,
        num_key_value_heads=hidden_size // HEAD,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return LM(model, tokenizer, f"llama of {layers} layers, D {hidden_size}")


def pretrain(
    corpus: Corpus, plan: Plan, folder: str | os.PathLike[str], *, progress: Progress | None = None
) -> Checkpoints:
    """Train a copy of the corpus's model on its rows, to predict each next token; checkpoints go into `folder`.

    The first step reads the first rows, and so on; a corpus of too little text needs several `epochs`. Where a float32
    model's products are faster in 16 bits, they are made so. A training that was stopped at any moment goes on from its
    last checkpoint, with the same result bit for bit on the same machine; a finished one is not repeated. Raises
    LenscopeError for a folder of another training, or text that ends too soon.
    """
    folder = Path(folder)
    run = PretrainingRun(corpus, plan, folder)
    run.identify()
    checkpoints = Checkpoints.in_folder(folder)
    if set(plan.checkpoints) <= set(checkpoints.steps):
        return checkpoints
    run.restore()
    run.advance(progress or (lambda done, total: None))
    shutil.rmtree(folder / STATE, ignore_errors=True)
    return Checkpoints.in_folder(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bar of progress that transformers shows when it saves."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


class PretrainingRun:
    """One training: the model, what the optimizers keep of it, and how far it is."""

    def __init__(self, corpus: Corpus, plan: Plan, folder: Path) -> None:
        self.corpus, self.plan, self.folder = corpus, plan, folder
        self.low = low_precision(corpus.lm)
        self.step = 0
        self.model = copy.deepcopy(corpus.lm.model)
        self.model.requires_grad_(True)
        self.weights = dict(self.model.named_parameters())
        ends = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        apart = {id(p) for end in ends if isinstance(end, nn.Module) for p in end.parameters()}
        self.matrices = {n for n, p in self.weights.items() if p.ndim == 2 and id(p) not in apart}
        self.first = {n: torch.zeros_like(p) for n, p in self.weights.items()}
        self.second = {n: torch.zeros_like(p) for n, p in self.weights.items() if n not in self.matrices}

    def identify(self) -> None:
        """Write into the folder which training it is of, or see that it is of this one."""
        lm = self.corpus.lm
        identity: dict[str, Any] = {"model": model_hash(lm.model), "corpus": self.corpus.provenance()}
        identity |= {"plan": asdict(self.plan), "products": dtype_name(self.low or lm.dtype)}
        # a name alone says nothing of what a stream brings
        if isinstance(self.corpus.documents, DocumentStream):
            identity["text"] = self.corpus.digest(self.plan.steps * self.plan.rows * self.corpus.length)
        # paths and the tokenizer's name may differ where the content is the same
        identity = json.loads(json.dumps(identity, ensure_ascii=False))
        path = self.folder / IDENTITY
        if path.exists():
            try:
                there = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                there = {}
            # version 0.1.0 did not write the products
            there.setdefault("products", identity["products"])
            other = [name for name in identity if there.get(name) != identity[name]]
            if other:
                raise LenscopeError(
                    f"{self.folder}: holds another training, of another {' and '.join(other)}; give another folder"
                )
            return
        if Checkpoints.in_folder(self.folder).steps:
            raise LenscopeError(f"{self.folder}: holds checkpoints of another training; give another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(identity, ensure_ascii=False, indent=1))

    def restore(self) -> None:
        """Go back to where the last saved state was, if there is one."""
        if not (self.folder / STATE / artifacts.CONFIG).exists():
            return
        config, tensors = artifacts.read_folder(self.folder / STATE, STATE)
        self.step = config["step"]
        with torch.no_grad():
            for name, tensor in self._state().items():
                tensor.copy_(tensors[name])

    def advance(self, progress: Progress) -> None:
        """All steps that are left."""
        plan, corpus = self.plan, self.corpus
        tokens = plan.steps * plan.rows * corpus.length
        leave = set(plan.checkpoints)
        if self.step == 0:
            self._leave()
        for batch in corpus.batches(tokens, plan.rows, start=self.step * plan.rows):
            with torch.enable_grad():
                loss = self._loss(batch.ids.to(corpus.lm.device))
                gradients = torch.autograd.grad(loss, list(self.weights.values()))
            self._change(dict(zip(self.weights, gradients, strict=True)))
            self.step += 1
            if self.step in leave:
                self._leave()
                if self.step % plan.every == 0:
                    artifacts.write_folder(self.folder / STATE, STATE, {"step": self.step}, self._state())
            progress(self.step * plan.rows * corpus.length, tokens)

    def _loss(self, ids: Tensor) -> Tensor:
        with half_precision(self.corpus.lm, self.low):
            logits = self.model(input_ids=ids, use_cache=False).logits
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return functional.cross_entropy(wide[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    @torch.no_grad()
    def _change(self, gradients: dict[str, Tensor]) -> None:
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        clip = float((1 / (norm + 1e-6)).clamp_max(1.0))
        size = self.plan.rate * self.plan.decay(self.step)
        for name, w in self.weights.items():
            g, first = gradients[name] * clip, self.first[name]
            if name in self.matrices:
                first.mul_(self.plan.momentum).add_(g)
                turned = orthogonal(g + self.plan.momentum * first, self.low)
                w.sub_(turned, alpha=size * max(1.0, w.shape[0] / w.shape[1]) ** 0.5)
                continue
            second, count = self.second[name], self.step + 1
            first.lerp_(g, 1 - FIRST)
            second.lerp_(g * g, 1 - SECOND)
            root = (second / (1 - SECOND**count)).sqrt_().add_(1e-8)
            w.addcdiv_(first, root, value=-size * ADAM / (1 - FIRST**count))

    def _state(self) -> dict[str, Tensor]:
        kinds: dict[str, Mapping[str, Tensor]] = {"weight": self.weights, "first": self.first, "second": self.second}
        return {f"{kind}.{name}": t.detach() for kind, tensors in kinds.items() for name, t in tensors.items()}

    def _leave(self) -> None:
        """A checkpoint's folder, there whole or not at all."""
        folder = self.folder / f"step-{self.step:06d}"
        if folder.exists():
            return
        making = self.folder / f".making-{secrets.token_hex(8)}"
        try:
            shutil.rmtree(making, ignore_errors=True)
            with _quiet():
                self.model.save_pretrained(making)
            if self.corpus.lm.tokenizer is not None:
                self.corpus.lm.tokenizer.save_pretrained(making)
            making.rename(folder)
        except OSError as error:
            raise LenscopeError(f"{folder}: cannot be written ({error.strerror or error})") from error
        finally:
            shutil.rmtree(making, ignore_errors=True)
