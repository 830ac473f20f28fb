from __future__ import annotations

import pytest
from rich.table import Table

from idiolect_services.cli.common import console, visible


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
