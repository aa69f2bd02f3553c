"""What was answered lately, by what was asked: the same request again does not run.

Knows: which requests are the same, how much is remembered. Does not know: what answers hold.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

MOST_ENTRIES, MOST_BYTES = 256, 256 << 20


@dataclass(frozen=True, eq=False)
class Answered:
    """A whole answer: its events as they were sent, the result that they are of, where there is one, and its size."""

    events: Sequence[tuple[str, bytes]]
    result: Any = None

    @property
    def size(self) -> int:
        """Bytes of the events."""
        return sum(len(name) + len(data) for name, data in self.events)


def request_key(endpoint: str, asked: BaseModel) -> str:
    """A digest of a request: what is left out equals what stands for it by default."""
    text = json.dumps([endpoint, asked.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ResultsCache:
    """The latest answers, up to a number and a size; used from any thread."""

    def __init__(self, entries: int = MOST_ENTRIES, size: int = MOST_BYTES) -> None:
        self.entries, self.most = entries, size
        self._answers: OrderedDict[str, Answered] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answered | None:
        """The answer to a request, if it is still here; it is the latest then."""
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
            return self._answers.get(key)

    def put(self, key: str, answer: Answered) -> None:
        """Remember an answer, and forget the oldest where there are too many, or they are too large."""
        if answer.size > self.most // 4:
            return
        with self._lock:
            old = self._answers.pop(key, None)
            self._size += answer.size - (old.size if old else 0)
            self._answers[key] = answer
            while len(self._answers) > self.entries or self._size > self.most:
                self._size -= self._answers.popitem(last=False)[1].size
