# `make demo` does the whole job on the built-in corpus; `make test` proves the code. Both create what they need.
# Every path is relative, so that a checkout may lie in a folder with spaces.

# What is imported is compiled then and kept, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
BIN := .venv/bin
ADVL := $(BIN)/python -m advl_cli
EXTRAS := train,demo,dev,hub,uniter,lora,tensorboard,s3,ray,site
STAMP := .venv/installed
SCENES_DATA := $(if $(ADVL_DATA),$(ADVL_DATA),datasets)
# Enough pictures for 300 questions to learn from and 600 to be tested on.
DEMO_SIZES := --num-train 400 --num-val 100 --num-test 300 --num-unseen 100 --num-compositional 40 --num-shift-inputs 200
DEMO_EXTRACT := --data-root datasets/demo --dataset scenes-vcr --split train --output caches/demo

# Each takes a core and up to two gigabytes, and half a minute to import and collect before it runs a test.
TEST_WORKERS ?= 2

# What `make study` runs, one after another; each resumes where it stopped, and takes what others before it have run.
STUDIES ?= scenes-vcr-lowshot scenes-controls scenes-ablation scenes-vqa-lowshot scenes-snli-ve-lowshot scenes-full \
	scenes-shift
# Cells side by side: steps of so small a student gain nothing from a second core.
STUDY_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: golden docs help install lock demo demo-caches demo-student test-cluster on-scenes scenes-inputs vcr-lowshot study test lint format types unit numerics oldest wheel walk light figure site bench bench-gpu chaos rehearsal clean

help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-13s %s\n", $$1, $$2}'

install: $(STAMP) ## Create .venv with everything that the demo and the tests need

# Golden losses rest on the versions of constraints.txt.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("ADVL needs Python 3.11 or later; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@# On all cores, and only what is often imported; pip compiles all on one. Some packages hold templates that are no Python.
	$(BIN)/python -m compileall -qq -j 0 -x '/(tests|ray|transformers/models)/' .venv/lib || true
	@# What building left in the checkout would be taken for an installed package, with entry points that grow stale.
	rm -rf advl_pipeline.egg-info
	@touch $(STAMP)

lock: ## Write constraints.txt anew: the newest versions that pyproject.toml allows, for `make install`
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet '.[$(EXTRAS)]'
	@# What building left in the checkout would be taken for an installed package.
	rm -rf advl_pipeline.egg-info build/lib build/bdist.*
	@# A build of torch for a processor or a GPU is of the same version; what torch for a GPU brings is its own affair.
	{ echo '# What `make install` installs. Written by `make lock`; do not edit.'; \
		build/lock/bin/python -m pip freeze --exclude advl-pipeline | sed -E 's/\+[a-z0-9.]+$$//; /^(nvidia|triton|cuda)/d'; \
	} > constraints.txt

demo: $(STAMP) ## The main job, end to end, on a small built-in corpus (minutes, CPU)
	$(ADVL) scenes build --data-root datasets/demo $(DEMO_SIZES)
	@# Steps of so small a student gain nothing from a second core: the teachers run beside its pretraining.
	$(MAKE) --no-print-directory -j2 demo-caches demo-student
	$(ADVL) study demo --workers 2 --data-root datasets/demo --caches caches/demo
	$(ADVL) report runs/studies/demo

demo-caches:
	OMP_NUM_THREADS=1 $(ADVL) extract --teacher efficientnet-lite0 $(DEMO_EXTRACT)/efficientnet-lite0/scenes-vcr/train
	OMP_NUM_THREADS=1 $(ADVL) extract --teacher minilm-l6 $(DEMO_EXTRACT)/minilm-l6/scenes-vcr/train

demo-student:
	OMP_NUM_THREADS=1 $(ADVL) scenes pretrain --data-root datasets/demo --output students/scenes-small

# Of `advl scenes build`, such as SCENES_OPTIONS="--seed 1 --descriptions mine.toml".
SCENES_OPTIONS ?=

scenes-inputs: $(STAMP)
	$(ADVL) scenes build $(SCENES_OPTIONS)
	$(ADVL) scenes pretrain --output students/scenes-small

# Of `advl study`, such as STUDY_OPTIONS="--regions 'img_db/vcr_{split}' --init students/uniter-base.pt".
STUDY_OPTIONS ?=

# What it will take is said first, one seed of the smallest size has a page of its own, and what is finished is never run
# again.
# $(1) is the study and its options, $(2) its name.
define in_sight
$(ADVL) study $(1) --dry-run && \
$(ADVL) study $(1) --first-seeds 1 && $(ADVL) report runs/studies/$(2) && \
echo "One seed of each method is done, and its page is there. What the others will take:" && \
$(ADVL) study $(1) --dry-run && \
$(ADVL) study $(1) && $(ADVL) report runs/studies/$(2)
endef

LOWSHOT := $(shell test -d "$(SCENES_DATA)/vcr" && echo vcr-lowshot || echo scenes-vcr-lowshot)

vcr-lowshot: $(STAMP) $(if $(filter scenes-%,$(LOWSHOT)),on-scenes scenes-inputs) ## The low-shot study on VCR, or on the VCR-format scenes when VCR is not there
	@$(call in_sight,$(LOWSHOT) $(if $(filter scenes-%,$(LOWSHOT)),--workers $(STUDY_WORKERS),$(STUDY_OPTIONS)),$(LOWSHOT))

on-scenes:
	@echo "VCR is not under $(SCENES_DATA)/vcr (docs/datasets.md), so the same study runs on the VCR-format scenes."
	@echo "First they are drawn, about a minute of one core, and the student is pretrained, about four: 0.2 GB;"
	@echo "then follows what the study will take here in minutes and in GB, before it begins."

study: scenes-inputs ## The scenes studies of all three task formats (hours, CPU); STUDIES="NAME ..." for others
	@for name in $(STUDIES); do $(ADVL) study "$$name" --workers $(STUDY_WORKERS) && $(ADVL) report "runs/studies/$$name" || exit 1; done

test: $(STAMP) lint ## Lint, types, tests, and the wheel from outside the tree
	@# Types and the wheel take what the tests leave of two cores while they wait.
	$(MAKE) --no-print-directory -j3 unit types wheel

lint: $(STAMP) ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## Apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## Check types (mypy strict)
	nice $(BIN)/mypy

# Files are shared out, so that what the tests of one file share is made once.
unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

# Tests that hold numbers against others within a tolerance.
NUMERIC_TESTS = $(shell grep -rlE 'assert_near|testing\.assert_(close|allclose)' tests --include='test_*.py')

numerics: $(STAMP) ## The numeric tests, once with each of torch's kernels for x86: default, avx2, avx512 (before a release)
	@for kernels in default avx2 avx512; do echo "ATEN_CPU_CAPABILITY=$$kernels"; \
		ATEN_CPU_CAPABILITY=$$kernels OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet \
		--numprocesses $(TEST_WORKERS) --dist loadfile $(NUMERIC_TESTS) || exit 1; done

# With what the least huggingface-hub needs; what old libraries deprecate is no failure.
oldest: $(STAMP) ## Read models with the least transformers, tokenizers, huggingface-hub and timm of pyproject.toml (before a release)
	rm -rf build/oldest
	$(BIN)/python -m pip install --quiet --no-deps --target build/oldest httpx httpcore h11 anyio sniffio typer-slim shellingham \
		$$(grep -oE '(huggingface-hub|timm|tokenizers|transformers)>=[0-9.]+' pyproject.toml | sed 's/>=/==/')
	PYTHONPATH=build/oldest $(BIN)/python -m pytest --quiet -W ignore tests/base/test_repositories.py tests/teachers/test_teachers_of_the_hub.py \
		tests/teachers/test_text_families.py tests/students/test_generative.py

test-cluster: $(STAMP) ## Stop and resume an extraction on a local Ray cluster
	$(BIN)/python -m pytest -m cluster

wheel: $(STAMP) ## Use the wheel outside the tree: README's example of one's own data, in a bare environment
	OMP_NUM_THREADS=1 nice $(BIN)/python tests/check_wheel.py

walk: $(STAMP) ## The same in a fresh clone and a fresh environment, which pip fills (minutes)
	$(BIN)/python tests/check_wheel.py --fresh

light: $(STAMP) ## Install the core that reads caches into an environment of its own, and weigh it
	$(BIN)/python tests/check_wheel.py --light

docs: $(STAMP) ## Write the command reference from the commands
	$(BIN)/python -m advl_cli.reference

figure: $(STAMP) ## Draw README's picture from its table
	$(BIN)/python docs/figure.py

site: $(STAMP) ## Write the documentation as a site into build/site; a broken link is an error
	@# Not --quiet: what is not said is not counted, and a broken link would pass.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

bench: $(STAMP) ## Measure every row of docs/performance.md against its goal, and write the page (half an hour)
	$(BIN)/python -m benchmarks --markdown docs/performance.md

bench-gpu: $(STAMP) ## Measure memory and speed of three teachers and three students on this machine's GPU, and write the page
	$(BIN)/python -m benchmarks --only gpu --markdown docs/performance.md

chaos: $(STAMP) ## Kill, stop and double extractions and finetunes, damage 200 caches, aim 100 outputs at foreign files; the same bytes must come back
	$(BIN)/python -m benchmarks.chaos

rehearsal: $(STAMP) ## The whole way of a user on mirrors of VCR, VQA v2 and SNLI-VE at official sizes (hours, 2 GB)
	$(BIN)/python -m benchmarks.rehearsal

golden: $(STAMP) ## Compare the losses of this checkout with those of another: make golden OTHER=../another
	$(BIN)/python tests/support/golden.py compare "$(OTHER)"

clean: ## Remove what can be made again (not datasets, caches and runs)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
