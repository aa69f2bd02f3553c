"""How much one request may ask for, and how a request that asks for more is refused.

Knows: numbers, status codes, the line that says the limit. Does not know: models, the web framework.
"""

from dataclasses import asdict, dataclass

from lenscope.errors import LenscopeError


class Refusal(LenscopeError):
    """A request that is refused with a status of its own; `retry_after` in seconds, where it may come again."""

    def __init__(self, status: int, line: str, retry_after: int | None = None) -> None:
        super().__init__(line)
        self.status = status
        self.retry_after = retry_after


@dataclass(frozen=True)
class Limits:
    """What a server grants: tokens of a prompt, tokens that are written, cells of a grid, waiting requests of a model.

    `body` counts the bytes of a request, `cells` the layers × positions of one answer.
    """

    prompt_tokens: int = 1024
    new_tokens: int = 256
    rows: int = 4096
    queue: int = 16
    body: int = 1 << 20
    cells: int = 200_000

    def to_json(self) -> dict[str, int]:
        """The numbers by name."""
        return asdict(self)

    def require_prompt(self, tokens: int) -> None:
        """Refuse a prompt that is too long, with 413."""
        if tokens > self.prompt_tokens:
            raise Refusal(
                413,
                f"the prompt has {tokens} tokens: this server reads at most {self.prompt_tokens}; shorten it, or start "
                "the server with a larger --max-prompt-tokens",
            )

    def require_new(self, tokens: int) -> None:
        """Refuse to write too much."""
        if tokens > self.new_tokens:
            raise Refusal(422, f"max_new_tokens {tokens}: this server writes at most {self.new_tokens}")

    def require_rows(self, rows: int) -> None:
        """Refuse a grid with too many cells."""
        if rows > self.rows:
            raise Refusal(422, f"the grid has {rows} cells: this server runs at most {self.rows}; name fewer layers")

    def require_cells(self, layers: int, positions: int) -> None:
        """Refuse an answer with too many layers × positions."""
        if layers * positions > self.cells:
            raise Refusal(
                422,
                f"{layers} layers × {positions} positions: this server answers with at most {self.cells} cells; name "
                "fewer layers or positions",
            )
