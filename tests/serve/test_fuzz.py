"""The server against its own OpenAPI schema: whatever comes, the answer is no server error and is as documented."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from serving import Running, ready, running

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

# What a schema cannot say is refused though the schema allows it: two limits at once, more tokens than there is room.
REFUSES_MORE = [schemathesis.checks.positive_data_acceptance]


@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_whatever_the_schema_allows_or_forbids_is_answered(kind: str) -> None:
    with running(ready(context=40)) as server:  # a short one, as most of these requests set no limit
        operations = list(operations_of(server))
        assert len(operations) == 6
        for operation in operations:
            posts = operation.method == "post"
            if posts or kind == "positive":  # without a body there is nothing to be wrong
                fuzz(operation.as_strategy(generation_mode=schemathesis.GenerationMode(kind)), 6 if posts else 1)
        assert server.metric('kinfolk_generations_total{end="failed"}') == 0
        if kind == "positive":
            assert server.metric('kinfolk_generations_total{end="done"}') >= 2
        assert server.chat().status == 200


def operations_of(server: Running) -> Any:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return (result.ok() for result in schema.get_all_operations())


def fuzz(cases: Any, count: int) -> None:
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def answered(case: Any) -> None:
        case.call_and_validate(timeout=20, excluded_checks=REFUSES_MORE)

    answered()
