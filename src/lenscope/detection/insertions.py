"""Prompts in which only what was inserted differs: an attack, or a harmless text of the same form at the same place.

Knows: where in a text something may be put, which sentences of other texts are about as long, which prompts share a
host. Does not know: files, which attacks there are, models.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from lenscope.detection.labelled_prompts import LabelledPrompt
from lenscope.errors import LenscopeError

PLACES = ("start", "middle", "end")
# a last paragraph such as "Q: …", behind which nothing is put
_QUESTION = re.compile(r"\n[ \t]*\n[A-Z][^\n:]{0,20}:[^\n]*\s*$")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|\n+")
# sentences in a row that one harmless text is made of at most, and how many are drawn to choose from
_LONGEST_RUN, _DRAWN = 4, 32
_SHORTEST = 8


def insert_texts(
    hosts: Sequence[LabelledPrompt],
    attacks: Sequence[LabelledPrompt],
    *,
    data_set: str = "",
    harmless: Sequence[str] = (),
    before: str = "",
    form: str = "{}",
    fill: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> list[LabelledPrompt]:
    """Put attacks into hosts, and at the same places harmless texts of the same form and about the same length.

    Each of the n hosts comes once as it is, normal. Then, for each of max(n, attacks) insertions, an attack in a host
    and a harmless text in the same host at the same place: at its start, its end, or between two sentences, which is
    drawn. All prompts of a host share its `host`, so that they never stand on both sides of a test; hosts that are
    alike but for a last paragraph such as "Q: …" are one. `span` is what was inserted, without line ends around it.

    Args:
        hosts: harmless prompts that something is put into.
        attacks: the texts that are put in, with their families; dealt to the hosts in turn.
        data_set: what the data set is called; "": as that of the first attack.
        harmless: what is put in as harmless, drawn at random; none: sentences of other hosts.
        before: what an insertion stands right before, at its last place, such as "Answer:"; "": the place is drawn.
        form: how a text is put in, its place being {}.
        fill: for marks in attacks and harmless texts what stands for them in each host, n texts each.
        seed: fixes whatever is drawn.

    Raises LenscopeError for no attacks, for fewer than two hosts, a host without `before`, and a mark without n texts.
    """
    if not attacks or len(hosts) < 2:
        raise LenscopeError(f"{len(attacks)} attacks, {len(hosts)} hosts: give at least 1 and 2")
    odd = next((h for h in hosts if h.attack or (before and before not in h.text)), None)
    if odd is not None:
        why = "is an attack" if odd.attack else f"has no {before!r} to put something before"
        raise LenscopeError(f"host {odd.text[:40]!r}: {why}; give harmless hosts that have a place")
    marks = dict(fill or {})
    if any(len(texts) != len(hosts) for texts in marks.values()):
        raise LenscopeError(f"fill: give {len(hosts)} texts for each mark, one for each host")
    name = data_set or attacks[0].data_set
    shared = [host_name(h) for h in hosts]
    prompts = [LabelledPrompt(h.text, False, name, host=s) for h, s in zip(hosts, shared, strict=True)]
    sentences = [] if harmless else _sentences_by_host(hosts, shared)
    random = np.random.default_rng([seed, 21])
    host_order, attack_order = random.permutation(len(hosts)), random.permutation(len(attacks))
    for n in range(max(len(hosts), len(attacks))):
        h, one = int(host_order[n % len(hosts)]), attacks[int(attack_order[n % len(attacks)])]
        own = np.random.default_rng([seed, 22, n])
        at = hosts[h].text.rfind(before) if before else draw_place(hosts[h].text, own)
        text = _with_marks_filled(one.text, marks, h)
        other = (
            _with_marks_filled(harmless[int(own.integers(len(harmless)))], marks, h)
            if harmless
            else _like(len(text), sentences, shared[h], own)
        )
        for inserted, attack in ((text, True), (other, False)):
            whole, span = inserted_at(hosts[h].text, at, form.replace("{}", inserted), inserted)
            family = (one.family or one.data_set) if attack else ""
            prompts.append(LabelledPrompt(whole, attack, name, family, shared[h], span))
    return prompts


def host_name(prompt: LabelledPrompt) -> str:
    """What prompts of one host share: its own `host`, else a digest of its text without a last question."""
    body = prompt.text[: body_end(prompt.text)].strip()
    return prompt.host or hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def body_end(text: str) -> int:
    """Where a text ends but for a last paragraph that begins with a label, such as "Q: …"."""
    question = _QUESTION.search(text)
    return question.start() if question and text[: question.start()].strip() else len(text.rstrip())


def draw_place(text: str, random: np.random.Generator) -> int:
    """Where something is put into a text: its start, its end, or behind one of its sentences, each as often."""
    end = body_end(text)
    inner = [m.end() for m in _SENTENCE_END.finditer(text, 0, end) if m.end() < end]
    place = PLACES[int(random.integers(len(PLACES)))]
    if place == "middle" and inner:
        return inner[int(random.integers(len(inner)))]
    return 0 if place == "start" else end


def inserted_at(text: str, at: int, inserted: str, inner: str) -> tuple[str, tuple[int, int]]:
    """The text with something put in at a place, apart from what is around, and the span of `inner` within it."""
    before = "" if not at or text[at - 1].isspace() or inserted[0].isspace() else "\n"
    after = "" if at == len(text) or text[at].isspace() or inserted[-1].isspace() else "\n"
    whole = text[:at] + before + inserted + after + text[at:]
    start = at + len(before) + inserted.index(inner)
    return whole, (start, start + len(inner))


def _with_marks_filled(text: str, marks: Mapping[str, Sequence[str]], host: int) -> str:
    for mark, texts in marks.items():
        text = text.replace(mark, texts[host])
    return text.strip()


def _sentences_by_host(hosts: Sequence[LabelledPrompt], shared: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The sentences of each host, one that is alike but for its question being one."""
    sentences = {}
    for host, name in zip(hosts, shared, strict=True):
        body = host.text[: body_end(host.text)]
        cuts = [0, *(m.end() for m in _SENTENCE_END.finditer(body)), len(body)]
        parts = [body[a:b].strip() for a, b in pairwise(cuts)]
        sentences[name] = [p for p in parts if len(p) >= _SHORTEST] or [body.strip()]
    return [*sentences.items()]


def _like(length: int, sentences: list[tuple[str, list[str]]], host: str, random: np.random.Generator) -> str:
    """Sentences in a row of another host, of those drawn the ones whose length is nearest."""
    others = [parts for name, parts in sentences if name != host]
    if not others:
        raise LenscopeError("hosts: all are one and the same; give different ones, whose sentences are put in")
    candidates = []
    for _ in range(_DRAWN):
        parts = others[int(random.integers(len(others)))]
        start, run = int(random.integers(len(parts))), 1 + int(random.integers(_LONGEST_RUN))
        candidates.append(" ".join(" ".join(parts[start : start + run]).split()))
    return min(candidates, key=lambda c: abs(len(c) - length))
