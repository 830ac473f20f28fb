from __future__ import annotations

import io
import sys

import pytest
import typer
from rich.table import Table

from idiolect_services.cli.common import console, run_app, visible


@pytest.mark.parametrize("text", ["\x1b[31mred", "\x9b2J", "a\rb", "\x07", "\u202egnp.exe", "\x00", "\x7f"])
def test_a_terminal_is_told_nothing_by_what_somebody_wrote(text: str) -> None:
    table = Table("reason")
    table.add_row(text)
    with console.capture() as said:
        console.print(text)
        console.print(table)
        console.print_json(f'["{text}"]' if text.isprintable() else f'["x{chr(0x9B)}"]')
    (obeyed,) = [character for character in text if visible(character) != character]
    assert obeyed not in said.get()
    assert f"\\u{ord(obeyed):04x}" in said.get()


def test_what_people_write_stays_as_it_is() -> None:
    with console.capture() as said:
        console.print(":bomb: at :10:")
    assert ":bomb: at :10:" in said.get()
    for text in ("two\nlines\tand a tab", "Grüße, 你好, שלום, 👩\u200d🔬", "a [b] c"):
        assert visible(text) == text


def test_an_output_without_the_letters_shows_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    app = typer.Typer()
    app.command()(lambda: console.print("za 你…"))
    monkeypatch.setattr(sys, "argv", ["idiolect"])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    sys.stdout.flush()
    assert (ended.value.code, written.getvalue()) == (0, b"za \\u4f60\\u2026\n")
