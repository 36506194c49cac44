# Everything a newcomer needs; each target sets up what it uses.  Python 3.11 or newer as python3 (or PYTHON=...).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
SHARED ?= ../shared
# Pass marks: raised to what is reached, never lowered.
LAB_MARK ?= 1.0
LAB_ALL_MARK ?= 0.969
LAB_FULL := basic_pop,basic_imap,smarthost,fork_bcc,greylist
TORTURE_MARK ?= 1.0
PCAPS_MARK ?= 0.981

.PHONY: demo test lint score bench story clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/python -m compileall -q analyzer  # where Python may not write bytecode, each start would compile us anew (0.3 s)
	touch $(STAMP)

demo: $(STAMP)  ## the main job on the embedded story capture
	$(BIN)/mailhop demo

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest

lint: $(STAMP)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

score: $(STAMP)  ## the scorers, where the shared captures are at hand
	@if [ ! -d $(SHARED)/score ]; then echo "no $(SHARED)/score here: not scored"; exit 0; fi; set -ex; \
	$(BIN)/python $(SHARED)/score/lab.py --command '$(BIN)/mailhop' --only $(LAB_FULL) --at-least $(LAB_MARK) $(SHARED)/lab/captures; \
	$(BIN)/python $(SHARED)/score/lab.py --command '$(BIN)/mailhop' --at-least $(LAB_ALL_MARK) $(SHARED)/lab/captures; \
	$(BIN)/python $(SHARED)/score/torture.py --command '$(BIN)/mailhop' --at-least $(TORTURE_MARK) $(SHARED)/torture/cases; \
	$(BIN)/python $(SHARED)/score/pcaps.py --command '$(BIN)/mailhop' --at-least $(PCAPS_MARK) $(SHARED)/pcaps

bench: $(STAMP)  ## speed and memory beside tshark, in one run
	$(BIN)/python bench/run.py

story: $(STAMP)  ## make captures/story.pcapng again with real servers (root, Debian packages: see the script)
	$(BIN)/python captures/make_story.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis mailhop-demo
