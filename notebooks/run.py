#!/usr/bin/env python3
"""Execute every notebook of this folder and store what it shows.

.venv/bin/python notebooks/run.py [NOTEBOOK...]
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
NAMES = sorted(path.name for path in HERE.glob("*.ipynb"))
SECONDS = 120
"""The most that one cell may take."""


def executed(name: str) -> nbformat.NotebookNode:
    """A notebook, run from top to bottom in its folder.  Raises CellExecutionError when a cell fails."""
    made = nbformat.read(HERE / name, as_version=4)
    NotebookClient(made, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    for cell in made.cells:
        cell.metadata.pop("execution", None)  # times of this run say nothing
    return made


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        made = executed(Path(name).name)
        made.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        nbformat.validate(made)
        (HERE / Path(name).name).write_text(nbformat.writes(made) + "\n", encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
