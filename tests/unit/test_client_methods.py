"""What the clients' methods say of themselves, to `help`, a notebook or an editor that looks at living objects."""

from __future__ import annotations

import inspect
import pydoc
import typing
from typing import Any

import pytest

from client_calls import bare, builders, filled
from idiolect import AsyncClient, Client
from idiolect.client import results

CLIENTS: tuple[type[Any], ...] = (Client, AsyncClient)
NAMES = sorted(builders())
OWN = {Client: {"send", "close"}, AsyncClient: {"send", "aclose"}}
every_method = pytest.mark.parametrize(
    ("client", "name"), [(client, name) for client in CLIENTS for name in NAMES], ids=str
)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_has_a_method_for_each_call_and_no_other(client: type[Any]) -> None:
    methods = {name for name, value in vars(client).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert methods - OWN[client] == set(NAMES)


@every_method
def test_a_method_has_the_parameters_of_its_call_with_their_types(client: type[Any], name: str) -> None:
    build = builders()[name]
    itself, *rest = inspect.signature(getattr(client, name)).parameters.values()
    assert itself.name == "self"
    expected, hints = inspect.signature(build).parameters, typing.get_type_hints(build)
    assert [(one.name, one.kind, one.default) for one in rest] == [
        (one.name, one.kind, one.default) for one in expected.values()
    ]
    assert {one.name: one.annotation for one in rest} == {one: hints[one] for one in expected}
    bound = inspect.signature(getattr(client("https://api.test", "idio_123456789"), name))
    assert list(bound.parameters) == list(expected)


@every_method
def test_a_method_returns_what_the_call_is_answered_with(client: type[Any], name: str) -> None:
    method, build = getattr(client, name), builders()[name]
    returned = typing.get_type_hints(method)["return"]
    assert issubclass(returned, results.Result)
    assert returned is inspect.signature(method).return_annotation is filled(build).result is bare(build).result
    assert inspect.iscoroutinefunction(method) is (client is AsyncClient)


@every_method
def test_help_shows_the_parameters_and_the_words(client: type[Any], name: str) -> None:
    shown = pydoc.plain(pydoc.render_doc(getattr(client, name)))
    for parameter in inspect.signature(builders()[name]).parameters:
        assert f"{parameter}: " in shown
    assert "Call[" not in shown
    assert f"-> {typing.get_type_hints(getattr(client, name))['return'].__module__}" in shown
    assert " ".join((inspect.getdoc(builders()[name]) or "nothing").split()) in " ".join(shown.split())
    assert f"{client.__name__}.{name}" in repr(getattr(client, name))


def test_what_is_shown_reads_like_a_method_that_was_written_by_hand() -> None:
    api = Client("https://api.test", "idio_123456789")
    assert str(inspect.signature(api.adapter)) == "(version_id: str) -> idiolect.client.registry_results.Adapter"
    assert str(inspect.signature(Client.ready)) == "(self, /) -> idiolect.client.results.Readiness"
    shown = pydoc.plain(pydoc.render_doc(AsyncClient))
    assert "async erase(self, /, user: str) -> idiolect.client.results.ResetReceipt" in shown


def test_a_wrong_argument_is_named_in_the_error() -> None:
    with pytest.raises(TypeError, match="'usr'"):
        Client("https://api.test", "idio_123456789").erase(usr="ada")  # type: ignore[call-arg]
