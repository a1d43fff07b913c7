# `make demo` and `make test` set up all they need; nothing but python3 (>= 3.11), venv and make
# has to be there.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
INSTALLED := .venv/.installed

.PHONY: demo tutorial test lint fuzz bench gpu lock clean

$(INSTALLED): requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	touch $@

# Three methods on generated faces, one table and the figures, in demo/.
DEMO := $(BIN)/python train.py --data_dir ../demo/data --store_root ../demo/runs --overwrite \
	--model resnet18 --img_size 64 --batch_size 64 --epoch 3 --schedule 2
demo: $(INSTALLED)
	cd agedb-dir && { test -f ../demo/data/agedb.csv || $(BIN)/python demo_data.py --out ../demo/data; }
	cd agedb-dir && $(DEMO)
	cd agedb-dir && $(DEMO) --reweight sqrt_inv --lds --lds_ks 5 --lds_sigma 2
	cd agedb-dir && $(DEMO) --reweight sqrt_inv --lds --lds_ks 5 --lds_sigma 2 --fds --fds_ks 5 --fds_sigma 2
	cd agedb-dir && $(BIN)/python report.py ../demo/runs/* --out ../demo/figures --table ../demo/results.md
	@echo "The table is demo/results.md, the figures are in demo/figures/."

# The notebook is made from tutorial.py and run: ten seeds, unless TUTORIAL_SEEDS says otherwise.
# Its numbers go into the root README and the teaser's pictures.
tutorial: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tools/notebook.py --execute
	$(BIN)/python teaser/make.py

# One thread for each of the two workers: more would only take turns on two cores.
test: $(INSTALLED) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python tools/copies.py

# Damaged files of every kind, 10,000 of them, and runs that are killed at random moments, 21 of each
# folder; the counts go into benchmarks/RELIABILITY.md.
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --cases 10000
	OMP_NUM_THREADS=1 $(BIN)/python tests/kills.py --moments 21

# Ratios against plain loops, into benchmarks/README.md; for an idle machine.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/bench.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/methods.py

# Everything that only a GPU can say; run it again until nothing is left. GPU_FLAGS: --minutes 25,
# --data FILE_OF_PACK. The environment's own PyTorch may be used: make gpu GPU_PYTHON=python3.
GPU_PYTHON ?= $(or $(wildcard $(BIN)/python),$(PYTHON))
gpu:
	$(GPU_PYTHON) benchmarks/gpu.py $(GPU_FLAGS)

# Needs uv; the options keep every address of a package index out of the file.
lock:
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --all-extras \
		--no-header --no-emit-index-url --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv demo .pytest_cache .ruff_cache .hypothesis
