# `make help` lists the targets. Everything runs from a virtual environment that `make env` makes on first use.
PYTHON ?= python3
VENV ?= .venv
PY := PYTHONPATH=.:protos/python $(VENV)/bin/python
CHECKPOINT ?= checkpoints/talker
WAV ?= samples/demo.wav
TRACE ?=
METRICS ?= 0
DEVICE ?= cpu
SLOTS ?= 8
QUICK ?=
MINUTES ?= 30
TARGET ?=
FRAME ?=
STAMP := $(VENV)/.installed

.PHONY: help env run demo test lint talker talk-eval bench bench-gpu soak chaos trace profile \
        bench-recorder stubs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

env: $(STAMP) ## make the virtual environment (about 7 GB, because torch comes with CUDA)

$(STAMP): requirements/gateway.txt requirements/engine.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
		{ echo "moshi-mesh needs Python 3.10 to 3.12; name one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV): about 7 GB, some minutes"
	$(VENV)/bin/python -m pip install $(if $(CI),--quiet) --disable-pip-version-check -r requirements/dev.txt
	@touch $@

run: env ## start Redis, codec, lm and gateway on this machine; Ctrl-C stops all (CHECKPOINT, DEVICE, SLOTS, TRACE, METRICS)
	@$(PY) -m scripts.run --checkpoint $(CHECKPOINT) --device $(DEVICE) --slots $(SLOTS) --trace "$(TRACE)" --metrics $(METRICS)

demo: env ## talk to the mesh with a bundled WAV; starts a mesh if none runs; results in out/ (WAV, CHECKPOINT)
	@$(PY) -m scripts.demo --wav $(WAV) --checkpoint $(CHECKPOINT)

test: env ## run the tests
	$(PY) -m pytest

lint: env ## ruff, mypy, protos, stubs, manifests
	$(VENV)/bin/ruff check .
	$(PY) -m mypy
	cd protos && $(abspath $(VENV))/bin/buf lint
	$(PY) -m scripts.stubs --check
	$(PY) -m scripts.check_manifests

# Apart from `env`: only who trains or evaluates needs them.
$(VENV)/.installed-talker: requirements/talker.txt $(STAMP)
	@for tool in espeak-ng flite sox; do command -v $$tool >/dev/null || \
		{ echo "$$tool is missing; on Debian: apt-get install espeak-ng flite sox"; exit 1; }; done
	$(VENV)/bin/python -m pip install $(if $(CI),--quiet) --disable-pip-version-check -r requirements/talker.txt
	@touch $@

talker: $(VENV)/.installed-talker ## rebuild the bundled checkpoint from nothing, in about 90 minutes; needs espeak-ng, flite and sox
	$(PY) -m talker.build --out checkpoints/talker

talk-eval: $(VENV)/.installed-talker ## evaluate the bundled checkpoint through the mesh; writes out/talk.json and docs/talker.md
	$(PY) -m talker.evaluate --through-mesh

bench: env ## measure engines, gateway and capacity; writes out/bench.json and docs/benchmarks.md (QUICK=1)
	$(PY) -m bench $(if $(QUICK),--quick)

bench-gpu: CHECKPOINT = kyutai/moshiko-pytorch-bf16
bench-gpu: DEVICE = cuda
bench-gpu: env ## the same with the real weights on a CUDA machine (CHECKPOINT, DEVICE; also runs on a CPU)
	$(PY) -m bench --only checkpoint,gateway,capacity --checkpoint $(CHECKPOINT) --device $(DEVICE) \
		--out out/bench-gpu.json $(if $(QUICK),--quick)

soak: env ## watch the mesh's memory while callers talk for MINUTES; writes out/soak.json and out/soak.png
	@$(PY) -m bench.soak --checkpoint $(CHECKPOINT) --device $(DEVICE) --duration $(MINUTES)m

chaos: env ## kill, freeze and restart a mesh under live calls; writes out/chaos.json and docs/reliability.md (QUICK=1)
	$(PY) -m bench.chaos $(if $(QUICK),--quick)

trace: env ## make a call and show where its slowest frame's time went, also out/trace.png (WAV, CHECKPOINT, TARGET, FRAME)
	@$(PY) -m bench.trace --wav $(WAV) --checkpoint $(CHECKPOINT) --device $(DEVICE) \
		$(if $(TARGET),--target $(TARGET)) $(if $(FRAME),--frame $(FRAME))

profile: env ## say what a tick's time goes to, and the bottleneck; writes out/profile.json (CHECKPOINT, DEVICE, QUICK=1)
	@$(PY) -m bench.profile --checkpoint $(CHECKPOINT) --device $(DEVICE) $(if $(QUICK),--quick)

bench-recorder: env ## measure what traces cost and whether they tell all; writes out/recorder.json (QUICK=1: 3 minutes)
	@$(PY) -m bench.recorder $(if $(QUICK),--quick)

stubs: env ## generate the Python stubs from the protos
	$(PY) -m scripts.stubs

clean: ## remove what was built, but not the environment
	rm -rf build out .mypy_cache .pytest_cache .ruff_cache
