"""Calls of torch that mean something else for a while."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

Rule = Callable[[Callable[..., Any], Sequence[Any], dict[str, Any]], Any]
"""(function, arguments, keywords) -> what the call gives."""


class CallsBy(TorchFunctionMode):
    """Within it every call of torch is made by a rule."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self._rule = rule

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._rule(func, args, kwargs or {})
