"""What the server counts, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "kinfolk_requests", "Requests answered, by path and HTTP status.", ("path", "status"), registry=registry
        )
        self.seconds = Histogram(
            "kinfolk_request_seconds", "From a request's first byte to its answer's last.", ("path",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "kinfolk_first_text_seconds", "From a request's admission to the first text of its answer.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.prompt_tokens = Counter("kinfolk_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.tokens = Counter("kinfolk_generated_tokens", "Tokens of answers.", registry=registry)
        self.generations = Counter(
            "kinfolk_generations", "Generations by how they ended: done, timeout, cancelled or failed.", ("end",),
            registry=registry,
        )  # fmt: skip
        self.running = Gauge("kinfolk_generations_running", "1 while an answer is made.", registry=registry)
        self.waiting = Gauge("kinfolk_generations_waiting", "Generations that wait for their turn.", registry=registry)
        for end in ("done", "timeout", "cancelled", "failed"):
            self.generations.labels(end)

    def text(self) -> bytes:
        """The current values."""
        return generate_latest(self._registry)
