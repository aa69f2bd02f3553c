"""The web view under eight clients for a minute, and how long a person waits for the first thing to see.

A server of its own process runs the real model. First, alone: seconds from a request to the whole trajectory of a
20-token prompt, from a request to the first tokens of an explanation, and from a reader that leaves a long run to an
answer for the next one. Then eight clients ask for a while, each about prompts of its own: trajectories, explanations
and continuations, whose texts are checked; one request in ten is left before its answer comes. Medians and the slowest
tenth are printed; a lost request or an answer to another's prompt ends with status 1.

    python benchmarks/view.py --seconds 60 --clients 8
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import timing

WORDS = (
    *("river", "stone", "light", "garden", "music", "winter", "market", "bridge"),
    *("forest", "letter", "window", "doctor", "engine", "island", "silver"),
)
LENS = {"lens": "logit lens"}
LIMIT_S = 180


@contextmanager
def server(model: str) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-m", "lenscope", "serve", "-m", model, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline() if process.stderr else ""
        match = re.search(r"http://[^ #]+", line)
        if match is None:
            raise SystemExit(f"the server did not start: {line}")
        yield match[0].rstrip("/")
    finally:
        process.terminate()
        process.wait(30)


def prompt_of(client: int, n: int) -> str:
    """A prompt of about 20 tokens that no other request has."""
    picked = [WORDS[(client * 7 + n * k) % len(WORDS)] for k in range(1, 9)]
    return f"Client {client}, text {n}: the {' '.join(picked)} is"


def explanation(text: str) -> dict[str, Any]:
    target = {"name": "entity"}
    place = {"prompt": {"text": text}, "layer": 12, "position": -1}
    return {**place, "target": target, "layers": [2, 6, 12], "max_new_tokens": 8}


def first_trajectory(address: str, n: int) -> float:
    start = time.perf_counter()
    answer = httpx.post(
        f"{address}/api/trajectory", json={"prompt": {"text": prompt_of(90, n)}, **LENS}, timeout=LIMIT_S
    )
    answer.raise_for_status()
    return time.perf_counter() - start


def first_tokens(address: str, n: int) -> float:
    start = time.perf_counter()
    request = explanation(prompt_of(91, n))
    with httpx.stream("POST", f"{address}/api/explanation", json=request, timeout=LIMIT_S) as answer:
        for line in answer.iter_lines():
            if line == "event: tokens":
                return time.perf_counter() - start
    raise SystemExit("an explanation ended without tokens")


def freed(address: str, n: int) -> float:
    """From leaving a run of a thousand tokens to the answer for the next reader, a short one."""
    ids = [200 + (n * 31 + k * 17) % 40_000 for k in range(1000)]
    try:
        httpx.post(f"{address}/api/trajectory", json={"prompt": {"ids": ids}, **LENS}, timeout=0.5)
    except httpx.TimeoutException:
        pass
    start = time.perf_counter()
    short = {"prompt": {"ids": [400 + n]}, **LENS}
    httpx.post(f"{address}/api/trajectory", json=short, timeout=LIMIT_S).raise_for_status()
    return time.perf_counter() - start


class Client(threading.Thread):
    """Asks one request after the other about its own prompts, and checks that answers are about them."""

    def __init__(self, address: str, number: int, end: float) -> None:
        super().__init__(daemon=True)
        self.address, self.number, self.end = address, number, end
        self.counts: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.ids: dict[str, list[int]] = {}

    def run(self) -> None:
        kinds = (self.trajectory, self.explanation, self.generation)
        with httpx.Client(base_url=self.address, timeout=LIMIT_S) as client:
            n = 0
            while time.monotonic() < self.end:
                kind, text = kinds[n % 3], prompt_of(self.number, n)
                n += 1
                start = time.perf_counter()
                try:
                    if n % 10 == 0:
                        self.leave(text)
                        continue
                    right = kind(client, text)
                except (httpx.HTTPError, KeyError, ValueError) as error:
                    self.counts[f"lost: {type(error).__name__}"] += 1
                    continue
                if right is None:
                    self.counts["told to come later"] += 1
                    time.sleep(1)
                    continue
                self.counts["right" if right else "WRONG"] += 1
                self.seconds[kind.__name__].append(time.perf_counter() - start)

    def leave(self, text: str) -> None:
        try:
            httpx.post(
                f"{self.address}/api/trajectory", json={"prompt": {"text": text + " left"}, **LENS}, timeout=0.05
            )
        except httpx.TimeoutException:
            self.counts["left"] += 1

    def trajectory(self, client: httpx.Client, text: str) -> bool | None:
        answer = client.post("/api/trajectory", json={"prompt": {"text": text}, **LENS})
        return None if answer.status_code == 429 else answer.raise_for_status().json()["text"] == text

    def explanation(self, client: httpx.Client, text: str) -> bool | None:
        events = self.events(client, "explanation", explanation(text))
        if events is None:
            return None
        ends = [data for name, data in events if name == "end"]
        rows = dict(events)["start"]["rows"]
        return events[-1][0] == "done" and len(ends) == len(rows) == 7

    def generation(self, client: httpx.Client, text: str) -> bool | None:
        events = self.events(client, "generation", {"prompt": {"text": text}, **LENS, "max_new_tokens": 6})
        if events is None:
            return None
        return dict(events)["start"]["payload"]["text"] == text and events[-1][0] == "done"

    def events(self, client: httpx.Client, endpoint: str, request: Any) -> list[tuple[str, Any]] | None:
        with client.stream("POST", f"/api/{endpoint}", json=request) as answer:
            if answer.status_code == 429:
                return None
            answer.raise_for_status()
            events, name = [], ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    events.append((name, json.loads(line.removeprefix("data: "))))
            return events


def shown(what: str, seconds: list[float]) -> None:
    high = sorted(seconds)[int(0.9 * (len(seconds) - 1))]
    print(
        f"{what:45} median {statistics.median(seconds):6.2f} s, nine of ten within {high:6.2f} s, {len(seconds)} times"
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--repeats", type=int, default=9)
    chosen = options.parse_args()
    timing.print_machine()
    with server(chosen.model) as address:
        # until everything was done once that the server does once
        for n in range(2):
            first_trajectory(address, 1000 + n), first_tokens(address, 1000 + n)
        time.sleep(10)
        shown("first trajectory of a 20-token prompt", [first_trajectory(address, n) for n in range(chosen.repeats)])
        shown("first tokens of an explanation", [first_tokens(address, n) for n in range(chosen.repeats)])
        shown("next answer after a reader left a long run", [freed(address, n) for n in range(chosen.repeats)])
        end = time.monotonic() + chosen.seconds
        clients = [Client(address, n, end) for n in range(chosen.clients)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(chosen.seconds + LIMIT_S)
        counts = sum((client.counts for client in clients), Counter())
        if any(client.is_alive() for client in clients):
            counts["lost: never answered"] += sum(client.is_alive() for client in clients)
        print(f"{chosen.clients} clients, {chosen.seconds:.0f} s: " + ", ".join(f"{n} {k}" for k, n in counts.items()))
        for kind in ("trajectory", "explanation", "generation"):
            every = [s for client in clients for s in client.seconds[kind]]
            if every:
                shown(f"  {kind}, {chosen.clients} clients at once", every)
        again = httpx.get(f"{address}/api/info", timeout=LIMIT_S)
        again.raise_for_status()
    return int(counts["WRONG"] > 0 or any(name.startswith("lost") for name in counts))


if __name__ == "__main__":
    sys.exit(main())
