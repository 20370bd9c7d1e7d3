# `make demo` runs everything on the built-in corpus; `make test` runs all checks. Both create what they need.
# Every path is relative, so that the path of a checkout may contain spaces.

# Imports write bytecode, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
BIN := .venv/bin
ADVL := $(BIN)/python -m advl_cli
EXTRAS := train,demo,dev,hub,uniter,lora,tensorboard,s3,ray,site
PIP_OPTIONS := --quiet --no-compile --disable-pip-version-check
# Half of the installed code: it is compiled when it is first imported.
RARELY_IMPORTED := _inductor|fontTools|mypyc?|networkx|pip|pygments|ray|setuptools|sklearn|testing|tests|torchmetrics|transformers/models
STAMP := .venv/installed
SCENES_DATA := $(if $(ADVL_DATA),$(ADVL_DATA),datasets)
# Enough pictures for 300 questions to learn from and 600 to be tested on.
DEMO_SIZES := --num-train 400 --num-val 100 --num-test 300 --num-unseen 100 --num-compositional 40 --num-shift-inputs 200
DEMO_EXTRACT := --data-root datasets/demo --dataset scenes-vcr --split train --output caches/demo

# Each takes a core and up to two gigabytes, and half a minute to import and collect before it runs a test.
TEST_WORKERS ?= 2

# Studies of `make study`, in order. Each resumes where it stopped and reuses the runs of earlier ones.
STUDIES ?= scenes-vcr-lowshot scenes-controls scenes-ablation scenes-vqa-lowshot scenes-snli-ve-lowshot scenes-full \
	scenes-shift
# Runs in parallel: steps of such a small student gain nothing from a second core.
STUDY_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: golden docs help install lock demo demo-caches demo-student test-cluster on-scenes scenes-inputs vcr-lowshot study test quick lint format types unit numerics oldest wheel walk light figure site bench bench-gpu chaos release rehearsal clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-13s %s\n", $$1, $$2}'

install: $(STAMP) ## Create .venv with everything that the demo and the tests need

# The golden losses depend on the versions of constraints.txt.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("ADVL needs Python 3.11 or later; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	@# Pip unpacks on one core, so two processes install the locked versions. The last one installs whatever is missing,
	@# such as the dependencies of torch for a GPU, and fails if a required package cannot be installed.
	grep -v '^#' constraints.txt | xargs -P 2 -n 20 $(BIN)/python -m pip install $(PIP_OPTIONS) --no-deps || true
	@# Compile in the meantime; errors are ignored, because some packages ship templates that are not Python.
	$(BIN)/python -m compileall -qq -j 0 -x '/($(RARELY_IMPORTED))/' .venv/lib & \
	$(BIN)/python -m pip install $(PIP_OPTIONS) --constraint constraints.txt --editable '.[$(EXTRAS)]' && wait
	@# Build leftovers in the checkout would be taken for an installed package, with entry points that grow stale.
	rm -rf advl_pipeline.egg-info
	@touch $(STAMP)

lock: ## Regenerate constraints.txt with the newest versions that pyproject.toml allows, for `make install`
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet '.[$(EXTRAS)]'
	@# Build leftovers in the checkout would be taken for an installed package.
	rm -rf advl_pipeline.egg-info build/lib build/bdist.*
	@# A build of torch for a processor or a GPU is of the same version; what torch for a GPU depends on is left out.
	{ echo '# What `make install` installs. Written by `make lock`; do not edit.'; \
		build/lock/bin/python -m pip freeze --exclude advl-pipeline | sed -E 's/\+[a-z0-9.]+$$//; /^(nvidia|triton|cuda)/d'; \
	} > constraints.txt

demo: $(STAMP) ## Run everything, end to end, on a small built-in corpus (minutes, CPU)
	$(ADVL) scenes build --data-root datasets/demo $(DEMO_SIZES)
	@# Steps of such a small student gain nothing from a second core: the teachers run in parallel with its pretraining.
	$(MAKE) --no-print-directory -j2 demo-caches demo-student
	$(ADVL) study demo --workers 2 --data-root datasets/demo --caches caches/demo
	$(ADVL) report runs/studies/demo

demo-caches:
	OMP_NUM_THREADS=1 $(ADVL) extract --teacher efficientnet-lite0 $(DEMO_EXTRACT)/efficientnet-lite0/scenes-vcr/train
	OMP_NUM_THREADS=1 $(ADVL) extract --teacher minilm-l6 $(DEMO_EXTRACT)/minilm-l6/scenes-vcr/train

demo-student:
	OMP_NUM_THREADS=1 $(ADVL) scenes pretrain --data-root datasets/demo --output students/scenes-small

# Options of `advl scenes build`, such as SCENES_OPTIONS="--seed 1 --descriptions mine.toml".
SCENES_OPTIONS ?=

scenes-inputs: $(STAMP)
	$(ADVL) scenes build $(SCENES_OPTIONS)
	$(ADVL) scenes pretrain --output students/scenes-small

# Options of `advl study`, such as STUDY_OPTIONS="--regions 'img_db/vcr_{split}' --init students/uniter-base.pt".
STUDY_OPTIONS ?=

# Print the cost first, then make a page from one seed of the smallest size, then run the rest. What is finished never runs again.
# $(1) is the study and its options, $(2) its name.
define in_sight
$(ADVL) study $(1) --dry-run && \
$(ADVL) study $(1) --first-seeds 1 && $(ADVL) report runs/studies/$(2) && \
echo "One seed of each method is done, and its page is written. The cost of the others:" && \
$(ADVL) study $(1) --dry-run && \
$(ADVL) study $(1) && $(ADVL) report runs/studies/$(2)
endef

LOWSHOT := $(shell test -d "$(SCENES_DATA)/vcr" && echo vcr-lowshot || echo scenes-vcr-lowshot)

vcr-lowshot: $(STAMP) $(if $(filter scenes-%,$(LOWSHOT)),on-scenes scenes-inputs) ## Run the low-shot study on VCR, or on the VCR-format scenes if VCR is missing
	@$(call in_sight,$(LOWSHOT) $(if $(filter scenes-%,$(LOWSHOT)),--workers $(STUDY_WORKERS),$(STUDY_OPTIONS)),$(LOWSHOT))

on-scenes:
	@echo "VCR is not below $(SCENES_DATA)/vcr (docs/datasets.md), so the same study runs on the VCR-format scenes."
	@echo "Drawing them takes about a minute of one core, pretraining the student about four, and 0.2 GB of disk."
	@echo "Before the study begins, its cost on this machine is printed in minutes and GB."

study: scenes-inputs ## Run the scenes studies of all three task formats (hours, CPU); STUDIES="NAME ..." for others
	@for name in $(STUDIES); do $(ADVL) study "$$name" --workers $(STUDY_WORKERS) && $(ADVL) report "runs/studies/$$name" || exit 1; done

test: $(STAMP) lint ## Run lint, types, tests, and the wheel outside the tree
	@# Types and the wheel use the two cores while the tests wait.
	$(MAKE) --no-print-directory -j3 unit types wheel

lint: $(STAMP) ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## Apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## Check types (mypy strict)
	nice $(BIN)/mypy

quick: $(STAMP) ## Run what is not slow in a folder of tests, for a minute at most: make quick DIR=cache
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses $(TEST_WORKERS) --dist loadfile \
		-m 'not slow and not cluster' --session-timeout 60 tests/$(DIR)

# Distribute by file, so that the shared fixtures of a file are made once.
unit: $(STAMP)
	@# A test of ten seconds that it names and that is not marked slow takes them from the minute of `make quick`.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder \
		--durations 40 --durations-min 10

# Tests that compare numbers within a tolerance.
NUMERIC_TESTS = $(shell grep -rlE 'assert_near|testing\.assert_(close|allclose)' tests --include='test_*.py')

numerics: $(STAMP) ## Run the numeric tests once with each of torch's kernels for x86: default, avx2, avx512 (before a release)
	@for kernels in default avx2 avx512; do echo "ATEN_CPU_CAPABILITY=$$kernels"; \
		ATEN_CPU_CAPABILITY=$$kernels OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet \
		--numprocesses $(TEST_WORKERS) --dist loadfile $(NUMERIC_TESTS) || exit 1; done

# With the dependencies of the oldest huggingface-hub; deprecations of old libraries are not failures.
oldest: $(STAMP) ## Read models with the oldest transformers, tokenizers, huggingface-hub and timm of pyproject.toml (before a release)
	rm -rf build/oldest
	$(BIN)/python -m pip install --quiet --no-deps --target build/oldest httpx httpcore h11 anyio sniffio typer-slim shellingham \
		$$(grep -oE '(huggingface-hub|timm|tokenizers|transformers)>=[0-9.]+' pyproject.toml | sed 's/>=/==/')
	PYTHONPATH=build/oldest $(BIN)/python -m pytest --quiet -W ignore tests/base/test_repositories.py tests/teachers/test_teachers_of_the_hub.py \
		tests/teachers/test_text_families.py tests/students/test_generative.py

test-cluster: $(STAMP) ## Stop and resume an extraction on a local Ray cluster
	$(BIN)/python -m pytest -m cluster

wheel: $(STAMP) ## Use the wheel outside the tree: README's example of your own data, in a bare environment
	OMP_NUM_THREADS=1 nice $(BIN)/python tests/check_wheel.py

walk: $(STAMP) ## The same in a fresh clone and a fresh environment, installed by pip (minutes)
	$(BIN)/python tests/check_wheel.py --fresh

light: $(STAMP) ## Install the core that reads caches into a new environment, and measure its size
	$(BIN)/python tests/check_wheel.py --light

docs: $(STAMP) ## Write the command reference from the commands
	$(BIN)/python -m advl_cli.reference

figure: $(STAMP) ## Draw README's picture from its table
	$(BIN)/python docs/figure.py

site: $(STAMP) ## Write the documentation as a site into build/site; a broken link is an error
	@# Not --quiet: suppressed warnings are not counted, and a broken link would pass.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

bench: $(STAMP) ## Measure every row of docs/performance.md against its goal, and write the page (half an hour)
	$(BIN)/python -m benchmarks --markdown docs/performance.md

bench-gpu: $(STAMP) ## Measure memory and speed of three teachers and three students on this machine's GPU, and write the page
	$(BIN)/python -m benchmarks --only gpu --markdown docs/performance.md

chaos: $(STAMP) ## Kill, stop and double extractions and finetunes, damage 200 caches; the same bytes must come back
	$(BIN)/python -m benchmarks.chaos

release: $(STAMP) ## Run every check of a release and write docs/release.md (hours); CHECKS="build light" for some; uploads nothing
	$(BIN)/python -m benchmarks.release $(CHECKS)

rehearsal: $(STAMP) ## Run a user's commands on mirrors of VCR, VQA v2 and SNLI-VE at official sizes (hours, 2 GB)
	$(BIN)/python -m benchmarks.rehearsal

golden: $(STAMP) ## Compare the losses of this checkout with those of another: make golden OTHER=../another
	$(BIN)/python tests/support/golden.py compare "$(OTHER)"

clean: ## Remove what can be rebuilt (not datasets, caches and runs)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
