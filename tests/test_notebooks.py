"""Every notebook runs from top to bottom, and the pictures stored in it are those that the code draws today."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
LIVE = "04_live.ipynb"
"""Shows times of this run."""


def _runner() -> Any:
    spec = importlib.util.spec_from_file_location("notebooks_run", FOLDER / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUNNER = _runner()


def shown(notebook: Any) -> list[str]:
    """Pictures and pages that mailhop made; tables are pandas' own, and look as its version likes."""
    made = [out.data.get("text/html", "") for cell in notebook.cells for out in cell.get("outputs", ()) if "data" in out]
    return [html for html in made if "<table border=" not in html]


@pytest.mark.parametrize("name", RUNNER.NAMES)
def test_a_notebook_runs_and_shows_what_is_stored_in_it(name: str) -> None:
    stored = nbformat.read(FOLDER / name, as_version=4)
    again = RUNNER.executed(name)
    assert all(
        cell.outputs or cell.source.rstrip().endswith((")", "start()")) for cell in again.cells if cell.cell_type == "code"
    )
    said = [out for cell in again.cells for out in cell.get("outputs", ())]
    assert not [out for out in said if out.output_type == "error" or out.get("name") == "stderr"]
    if name != LIVE:
        assert shown(again) == shown(stored)
    assert any("<svg" in html for html in shown(stored))
    assert not any("<script" in html for html in shown(stored))


def test_both_languages_run_the_same_code() -> None:
    english, japanese = (nbformat.read(FOLDER / f"01_first_message{end}.ipynb", as_version=4) for end in ("", ".ja"))
    code = [[cell.source for cell in book.cells if cell.cell_type == "code"] for book in (english, japanese)]
    assert code[0] == code[1]
    assert [cell.cell_type for cell in english.cells] == [cell.cell_type for cell in japanese.cells]
