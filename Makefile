# Targets: env, demo, docs, test, test-faults, test-tpu, test-all, lint, clean.

# The first Python on PATH that is new enough and can make virtual environments.
PYTHON ?= $(firstword $(foreach p,python3.12 python3.11 python3,$(shell \
	$(p) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
RUN := $(BIN)/python -m
DEMO := runs/demo
TOUR := docs/_build/runs/numbers
SENTENCE := twelve thousand, three hundred and forty-five; sixty-seven; eight hundred and nine

.PHONY: env demo docs test test-faults test-tpu test-all lint clean
env: .venv/.complete

.venv/.complete: setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is missing: apt-get install python3 python3-venv" >&2; exit 2; }
	@echo "Installing into .venv ($$($(PYTHON) --version), about 1.3 GB)"
	@rm -rf .venv
	@if command -v uv >/dev/null; then \
		UV_PYTHON_DOWNLOADS=never uv venv -q --seed --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv && \
		uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
		$(PYTHON) -m venv .venv && $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

demo: env
	$(RUN) experiments.train --config=configs/number_words.py --workdir=$(DEMO)
	@echo; echo "Three translations:"
	@printf '%s\n' '$(SENTENCE)' 'ninety-nine thousand, nine hundred and ninety-nine' 'one; two; three; four' \
		| $(RUN) experiments.translate --workdir=$(DEMO)
	@echo
	$(RUN) experiments.visualize --workdir=$(DEMO) --sentence='$(SENTENCE)'
	@echo; echo "A page to explore these translations:"
	@$(RUN) experiments.visualize --workdir=$(DEMO) --page \
		--sentence='$(SENTENCE)' --sentence='one; two; three; four' | tail -1
	$(RUN) experiments.evaluate --workdir=$(DEMO) --split=test

# MathJax comes from npm, so that the site needs no network. The tour draws a model that is trained here, in a minute or two.
docs: env
	@if command -v uv >/dev/null; then \
		uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev,docs]'; \
	else \
		$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'; \
	fi
	@mkdir -p docs/_build/static
	@test -f docs/_build/static/tex-svg.js || { cd docs/_build && npm pack --silent mathjax@3.2.2 >/dev/null && \
		tar -xzf mathjax-3.2.2.tgz -O package/es5/tex-svg.js > static/tex-svg.js; }
	@test -f $(TOUR)/result.json || $(RUN) experiments.train --config=configs/number_words.py:tour \
		--config.data.data_dir=$(CURDIR)/docs/_build/data --workdir=$(TOUR)
	@rm -rf docs/_build/.jupyter_cache  # the cells run again, because the library may have changed
	$(BIN)/sphinx-build -E -W --keep-going -q -j auto docs docs/_build/html
	@echo "docs/_build/html/index.html"

test: env
	$(RUN) pytest -n 2 --dist loadfile -m "not slow and not faults and not tpu"

test-faults: env
	$(RUN) pytest -n 2 --dist load -m faults

test-tpu: env
	@if command -v uv >/dev/null; then \
		uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev,tpu]'; \
	else \
		$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,tpu]'; \
	fi
	$(RUN) pytest -m tpu

test-all: env
	$(RUN) pytest -n 2 --dist loadfile -m "not faults and not tpu"

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

clean:
	rm -rf .venv build *.egg-info runs/demo docs/_build
	find . -name __pycache__ -o -name .pytest_cache -o -name .ruff_cache | xargs rm -rf
