# The ways to work with ExpertMesh. `make` alone lists them.
# PYTHON=path/to/python uses an environment of your own instead of .venv.
PYTHON ?= .venv/bin/python
PYTEST_ARGS ?=
DEMO_MODEL ?= .expertmesh/demo-model

needs_setup := $(if $(filter .venv/bin/python,$(PYTHON)),setup)

.DEFAULT_GOAL := help
.PHONY: help setup serve status down demo-model test test-families test-hosts test-fast screenshots check dashboards clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv with every pinned package (3 to 5 minutes once, then instant)
	@deploy/setup.sh

serve: $(needs_setup) ## build the demo model if need be and serve it on this machine
	@$(PYTHON) -m deploy up --demo

status: $(needs_setup) ## show what is running
	@$(PYTHON) -m deploy status

down: $(needs_setup) ## stop what `make serve` started
	@$(PYTHON) -m deploy down

demo-model: $(needs_setup) ## only build the demo model
	@$(PYTHON) -m deploy.demo_model --out $(DEMO_MODEL)

test: $(needs_setup) ## run the tests (some 19 minutes)
	@$(PYTHON) -m pytest tests/unit tests/manifests tests/component tests/browser tests/cluster -m "not extended" $(PYTEST_ARGS)

test-families: $(needs_setup) ## compare every known model family with unmodified vLLM
	@$(PYTHON) -m pytest tests/component/test_families.py -rP $(PYTEST_ARGS)

test-hosts: $(needs_setup) ## a pool that scales, and hosts as network namespaces (root, iproute2; 8 minutes)
	@$(PYTHON) -m pytest tests/cluster/test_scaling.py tests/cluster/test_hosts.py -rP $(PYTEST_ARGS)

screenshots: $(needs_setup) ## make docs/dashboard-*.png anew from a running application (needs chromium)
	@$(PYTHON) -m pytest tests/cluster/test_dashboard.py --screenshots=docs $(PYTEST_ARGS)

test-fast: $(needs_setup) ## run the unit tests alone (under a minute)
	@$(PYTHON) -m pytest tests/unit $(PYTEST_ARGS)

check: $(needs_setup) ## lint, format and types
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

dashboards: $(needs_setup) ## make monitoring/grafana/*.json, what k8s/ takes of it, and docs/metrics.md's tables anew
	@$(PYTHON) -m monitoring.render_grafana
	@$(PYTHON) -m monitoring.render_docs
	@$(PYTHON) -m deploy.kubernetes.monitoring

clean: ## remove everything that was made here, the environment and the demo model too
	rm -rf .venv .venv.lock .expertmesh build dist *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
