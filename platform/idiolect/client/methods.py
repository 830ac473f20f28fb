"""What a client's methods say of themselves: to `help`, to a notebook, to whatever reads signatures and annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_type_hints

from idiolect.client.call import Call

Method = TypeVar("Method", bound=Callable[..., Any])

_SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)


def introduced(method: Method, build: Callable[..., Call[Any]], owner: str) -> Method:
    """`method` of the class `owner`, under the name, words and parameters of `build`, whose call it sends. It returns
    what the call is answered with, where `build` returns the call."""
    hints = get_type_hints(build)
    (hints["return"],) = get_args(hints["return"])
    said = inspect.signature(build)
    parameters = [parameter.replace(annotation=hints[name]) for name, parameter in said.parameters.items()]
    method.__name__, method.__qualname__ = build.__name__, f"{owner}.{build.__name__}"
    method.__doc__ = build.__doc__
    method.__annotations__ = hints
    signature = said.replace(parameters=[_SELF, *parameters], return_annotation=hints["return"])
    method.__signature__ = signature  # type: ignore[attr-defined]
    return method
