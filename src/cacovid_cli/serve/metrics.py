"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .finished import Finished

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "cacovid_requests", "Requests answered, by path and status.", ["path", "status"], registry=registry
        )
        self.left = Counter("cacovid_requests_left", "Requests whose client left before the answer.", registry=registry)
        self.active = Gauge(
            "cacovid_requests_active", "Requests that are read, wait or are answered.", registry=registry
        )
        self.prompt_tokens = Counter("cacovid_prompt_tokens", "Tokens of prompts, as sent.", registry=registry)
        self.new_tokens = Counter("cacovid_generation_tokens", "Tokens generated.", registry=registry)
        self.seconds = Histogram(
            "cacovid_request_seconds", "From a request's body to the end of its answer.", buckets=_SECONDS, registry=registry
        )  # fmt: skip
        self.first_token = Histogram(
            "cacovid_time_to_first_token_seconds", "Of generation, from its beginning.", buckets=_SECONDS, registry=registry
        )  # fmt: skip

    def finished(self, answer: Finished, seconds: float) -> None:
        """Count an answer that took so many seconds."""
        self.prompt_tokens.inc(answer.prompt_tokens)
        self.new_tokens.inc(answer.new_tokens)
        self.seconds.observe(seconds)
        self.first_token.observe(answer.first_token_seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
