# Thin: every target is one or two commands that could be typed by hand.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# Which network: s2d where none is named, else unet3d, isensee2017, nnunet, unet2d.
PRESET ?=
RUN ?= $(or $(PRESET),mine)
DATA ?= data/synthetic
# Own scans are trained by a full-size recipe, the synthetic ones by the demo's.
CONFIG ?= $(if $(filter data/synthetic,$(DATA)),demo$(PRESET:%=-%),$(or $(PRESET),glioma))
SCANS ?= $(DATA)
OUT ?= out

BIN := .venv/bin
UV := $(shell command -v uv || echo .tools/bin/uv)
PYTHON ?= python3
INSTALLED := .venv/.installed

.PHONY: help setup demo test check format lint types imports train figures export infer bench cubes ablation default-model score ptx torture sbom lock clean

help:  ## list the verbs (this page)
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

setup: $(INSTALLED)  ## make .venv with everything, from requirements.lock

.tools/bin/uv:
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet uv

$(INSTALLED): requirements.lock $(wildcard */pyproject.toml) | $(filter .tools/%,$(UV))
	$(UV) venv --quiet --clear --python $(PYTHON) .venv
	$(UV) pip install --quiet --python .venv --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python .venv --no-deps -e runtime -e trainer -e export -e glioma
	@touch $@

demo: setup  ## synthetic scans, training, export, inference on unseen scans, Dice: under 5 minutes
	rm -rf demo runs/demo
	$(BIN)/brainseg-train synthetic demo/train --count 24 --seed 1
	$(BIN)/brainseg-train synthetic demo/unseen --count 4 --seed 2
	$(BIN)/brainseg-train fit demo/train --run runs/demo --config demo
	$(BIN)/brainseg-export bundle runs/demo -o bundles/demo
	$(BIN)/brainseg-infer demo/unseen -m bundles/demo -o demo/out --preview --report --overwrite
	$(BIN)/brainseg-train score demo/out demo/unseen

bundles/demo:
	$(MAKE) demo

data/synthetic: | setup
	$(BIN)/brainseg-train synthetic $@ --count 24 --seed 1

train: runs/$(RUN)/model.keras  ## DATA=<folder of scans with truth> RUN=<name> PRESET=<network>: Keras model in runs/<name>

runs/%/model.keras: | setup $(filter data/synthetic,$(DATA))
	$(BIN)/brainseg-train fit $(DATA) --run runs/$* --config $(CONFIG)

figures: train  ## RUN=<name>: every picture of the run, in runs/<name>/figures
	$(BIN)/brainseg-train figures runs/$(RUN)

export: runs/$(RUN)/model.keras  ## RUN=<name>: runs/<name> becomes the certified bundle bundles/<name>; TensorRT plans where a GPU is
	$(BIN)/brainseg-export bundle runs/$(RUN) -o bundles/$(RUN)
	@$(BIN)/brainseg-export engine bundles/$(RUN) || [ $$? = 5 ]  # where no GPU is, its one line says so

infer: setup  ## SCANS=<folder> RUN=<name> OUT=<folder>: segment scans with a bundle
	$(BIN)/brainseg-infer $(SCANS) -m bundles/$(RUN) -o $(OUT)

test: setup  ## the test suite
	$(BIN)/pytest

check: lint types imports test  ## all that CI checks, but for the demo

format: setup  ## let ruff format and mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup  ## ruff
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup  ## mypy, strict
	$(BIN)/mypy

imports: setup  ## who may import whom
	$(BIN)/lint-imports

bench: setup bundles/demo  ## seconds per stage and file to file, the forms of a model side by side, parity; into README
	$(BIN)/pytest benchmarks -o python_files="bench_*.py" --benchmark-only --benchmark-json=benchmarks/latest.json
	$(BIN)/python -m benchmarks.report benchmarks/latest.json --readme README.md

cubes: setup  ## CUBES=<folder of lesion crops>: train on real lesions, score once beside a discriminant
	$(BIN)/python -m benchmarks.cubes $(CUBES) -o runs/cubes --write docs/lesion-cubes.md

ablation: setup  ## CUBES=<folder of lesion crops>: several networks on real lesions, at equal steps and equal time
	$(BIN)/python -m benchmarks.ablation $(CUBES)

# Of real data, in the folders of their origins: see benchmarks/real.py and simulation/ingredients.py.
NAMED = $(if $(filter data/synthetic,$(DATA)),$(error name the folder of the real data: DATA=<folder>),$(DATA))
SHIPPED := glioma/brainseg_glioma/bundle

default-model: setup  ## DATA=<folder of real data>: simulate, train and score a model; it becomes that of brainseg-glioma
	$(BIN)/brainseg-train simulation gather $(addprefix $(NAMED)/,synthseg-labels mni152-nilearn brats2020-lesion-cubes) -o data/heads
	$(BIN)/brainseg-train simulation scans data/heads --count 6
	$(BIN)/brainseg-train fit data/heads --run runs/glioma --config brainseg-glioma
	$(BIN)/brainseg-export bundle runs/glioma -o bundles/glioma --licence glioma/LICENSE
	$(BIN)/python -m benchmarks.real $(NAMED) -m bundles/glioma --write glioma/README.md --picture docs/default-model.png
	$(BIN)/brainseg-export bundle runs/glioma -o $(SHIPPED) --licence glioma/LICENSE --notes glioma/README.md

score: setup  ## DATA=<folder of real data> RUN=<name>: Dice of a bundle on real scans, false positives, seconds
	$(BIN)/python -m benchmarks.real $(NAMED) -m bundles/$(RUN)

ptx: setup  ## compile the GPU kernels anew, with NVIDIA's compiler from PyPI; needs no GPU
	$(BIN)/python tests/runtime/kernels/nvrtc.py

torture: setup bundles/demo  ## hostile input, killed runs, mixed-up files, long runs: all trials in full, as a page
	PYTHONPATH=tests $(BIN)/python -m torture bundles/demo demo/unseen --data $${BRAINSEG_DATA:-../shared/data} \
		--write docs/reliability.md

sbom: setup  ## sbom.json: all that an installed runtime holds, as CycloneDX
	$(UV) venv --quiet --clear --python $(PYTHON) .sbom
	$(UV) pip install --quiet --python .sbom --constraint requirements.lock "./runtime[cpu,openvino,dicom,report,trust]"
	$(UV) tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py environment --output-format JSON \
		--output-reproducible --output-file sbom.json .sbom/bin/python
	rm -rf .sbom

lock: | $(filter .tools/%,$(UV))  ## resolve the dependencies anew into requirements.lock
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--group dev runtime/pyproject.toml trainer/pyproject.toml export/pyproject.toml \
		--extra cpu --extra openvino --extra dicom --extra report --extra rtx --extra trust --extra jax --extra tensorboard --no-emit-package brainseg-runtime -o requirements.lock

clean:  ## remove what was made: environments, demo, runs, bundles, caches
	rm -rf .venv .tools .sbom sbom.json demo runs bundles out data .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
