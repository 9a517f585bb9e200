# `make demo` and `make test` set up everything they need in .venv from a clean checkout. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-long lint torch torch-test clean

demo: $(VENV)/installed
	$(BIN)/dit sweep demo
	$(BIN)/dit results runs/demo --where "step == 3000 and sampling_steps == 25" --sort fd_digits
	$(BIN)/dit figures runs/demo
	$(BIN)/dit report runs/demo

test: $(VENV)/installed-test
	$(BIN)/pytest -n 2 --dist loadfile -m "not long" tests

# Minutes of faults, engines, browsers and compilation. What is not installed here (chromium, Slurm, mounting) is skipped with its reason.
# LONG chooses among them.
LONG ?= tests
test-long: $(VENV)/installed-long
	$(BIN)/pytest -m long $(LONG)

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Comparisons with PyTorch (CPU), for which torch is installed beside everything else; nothing else needs it.
torch: $(VENV)/installed-test
	$(INSTALL) torch==2.13.0

torch-test: torch
	$(BIN)/pytest -m torch tests

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) -e ".[test,sql,gcs,slurm]"
	touch $@

$(VENV)/installed-long: $(VENV)/installed-test
	$(INSTALL) -e ".[test,sql,gcs,ray,slurm,tpu-plan]"
	touch $@

# The type checker reads the packages that the code names, so the optional ones are installed for it.
$(VENV)/installed-lint: $(VENV)/installed
	$(INSTALL) -e ".[lint,sql,ray,slurm]"
	touch $@

clean:
	rm -rf $(VENV) runs
