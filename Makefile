# `make help` lists the targets. Everything runs from a virtual environment that `make env` makes on first use.
PYTHON ?= python3
PYTHON312 ?= python3.12
VENV ?= .venv
TORCH ?=
CHECKPOINT ?= checkpoints/talker
WAV ?= samples/demo.wav
TRACE ?=
METRICS ?= 0
DEVICE ?= cpu
NAME ?=
KEYS ?= keys.json
SLOTS ?= 8
HOST ?= 127.0.0.1
TLS ?=
QUICK ?=
MINUTES ?= 60
FUZZ_INPUTS ?= 100000
TARGET ?=
PLAN ?=
FRAME ?=
URL ?= http://localhost:8000

# In quotes for the shell, whatever is in it: a name of a file may have spaces.
quoted = '$(subst ','\'',$(1))'
PY := PYTHONPATH=.:protos/python $(VENV)/bin/python
# A machine that is busy with something else makes a frame late now and then. What fails is tried once more, for three
# tests of a run at most, and what failed is shown. What does not depend on the clock is never tried twice.
NEVER_TWICE := tests/lm tests/codec/test_engine.py tests/e2e/test_same_tokens.py tests/fuzz
PYTEST := $(PY) -m pytest --reruns 1 --max-suite-reruns 3 --rerun-show-tracebacks \
	$(addprefix --rerun-exclude-path ,$(NEVER_TWICE))
PIP := $(VENV)/bin/python -m pip install $(if $(CI),--quiet) --disable-pip-version-check
TORCH_CPU := https://download.pytorch.org/whl/cpu
ifneq ($(words $(VENV)),1)
$(error VENV is "$(VENV)": make's own files are in it, and their names can't have spaces)
endif
ifneq ($(filter-out cpu,$(TORCH)),)
$(error TORCH is cpu, or empty for the build with CUDA, got "$(TORCH)")
endif

.PHONY: help env dev redis run top key demo test test-slow test-short lint talker talk-eval doors page-check \
        direct-check bench bench-gpu plan gpu-wheels gpu-dry soak chaos fleet-check trace profile bench-recorder fuzz \
        trust stubs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

env: $(VENV)/.run redis ## make the environment of run and demo: 7 GB, because torch brings CUDA; with TORCH=cpu 1.4 GB

dev: $(VENV)/.dev redis ## add what the tests, linters and benchmarks need, 0.5 GB

# Each list has a stamp of its own: what is installed is not fetched again, and what is added to one list is added here.
$(VENV)/.python:
	@$(call quoted,$(PYTHON)) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' || \
		{ echo "moshi-mesh needs Python 3.10 to 3.14; name one with make PYTHON=..."; exit 1; }
	@$(call quoted,$(PYTHON)) -m venv $(VENV) || { echo "no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.run: requirements/run.txt requirements/engine.txt requirements/gateway.txt requirements/torch.txt \
              requirements/moshi.txt | $(VENV)/.python
	@echo "installing into $(VENV): about $(if $(TORCH),1.4,7) GB, some minutes"
	$(if $(TORCH),$(PIP) --index-url $(TORCH_CPU) -r requirements/torch.txt)
	$(PIP) -r requirements/run.txt
	$(PIP) --no-deps -r requirements/moshi.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt requirements/test.txt $(VENV)/.run
	$(PIP) -r requirements/dev.txt
	@touch $@

$(VENV)/.short: requirements/short.txt requirements/gateway.txt requirements/test.txt | $(VENV)/.python
	$(PIP) -r requirements/short.txt
	@touch $@

redis: | $(VENV)/.python ## find a redis-server, or fetch one into the environment
	@PYTHONPATH=. $(VENV)/bin/python -m harness.redis_server

run: env ## start Redis, codec, lm and gateway on this machine; Ctrl-C stops all (CHECKPOINT, DEVICE, SLOTS, HOST, TLS, TRACE, METRICS)
	@$(PY) -m scripts.run --checkpoint $(call quoted,$(CHECKPOINT)) --device $(call quoted,$(DEVICE)) \
		--slots $(call quoted,$(SLOTS)) --trace $(call quoted,$(TRACE)) --metrics $(call quoted,$(METRICS)) \
		--host $(call quoted,$(HOST)) $(if $(TLS),--dev-tls)

top: env ## show a gateway's replicas, calls and frames in this terminal, until Ctrl-C (URL)
	@$(PY) -m moshimesh.cli top --url $(call quoted,$(URL))

key: env ## make an API key, print it once, and add its hash to the file KEYS of --keys-file (NAME, KEYS)
	@$(PY) -m services.gateway.trust.make_key $(call quoted,$(KEYS)) $(call quoted,$(NAME))

demo: env ## talk to the mesh with a bundled WAV; starts a mesh if none runs; results in out/ (WAV, CHECKPOINT)
	@$(PY) -m scripts.demo --wav $(call quoted,$(WAV)) --checkpoint $(call quoted,$(CHECKPOINT))

# Several processes, since what torch has traced stays in a process's memory, 140 MB for each engine that a test builds
# (pytorch issue 96726): all in one took 18 GB, and tests/lm alone 16.
WITHOUT_MODELS := tests/gateway tests/fuzz tests/client tests/deploy tests/stubs

test: dev ## run the tests, but for the slow ones
	failed=0; \
	$(PYTEST) -m "not slow" $(WITHOUT_MODELS) || failed=1; \
	for file in tests/lm/test_*.py; do $(PYTEST) -m "not slow" $$file || failed=1; done; \
	$(PYTEST) -m "not slow" $(foreach folder,tests/lm $(WITHOUT_MODELS),--ignore $(folder)) tests || failed=1; \
	exit $$failed

# They wait for whole processes: three minutes are enough for each of them on a quiet machine only.
test-slow: dev ## run the slow tests: whole meshes, faults under load, installing (page-check has the browser's)
	$(PYTEST) -m slow --timeout 600 --ignore tests/browser

test-short: $(VENV)/.short redis ## run the gateway's and the client's tests alone, without torch (PYTHON, VENV)
	$(PYTEST) -m "not slow" tests/gateway tests/client tests/stubs/test_wheel.py tests/stubs/test_installed_wheel.py

lint: dev ## ruff, mypy, protos, stubs, manifests, docs/configuration.md
	$(VENV)/bin/ruff check .
	$(PY) -m mypy
	@# Tests and tools are not typed, but one that calls with an old signature shall not be found by a whole run only.
	! $(PY) -m mypy tests bench harness talker scripts | grep '\[call-arg\]'
	$(VENV)/bin/buf lint protos
	$(PY) -m scripts.stubs --check
	$(PY) -m scripts.check_manifests
	$(PY) -m scripts.configuration --check

# Apart from `dev`: needed for training and evaluation alone.
$(VENV)/.talker: requirements/talker.txt $(VENV)/.dev
	@for tool in espeak-ng flite sox; do command -v $$tool >/dev/null || \
		{ echo "$$tool is missing; on Debian: apt-get install espeak-ng flite sox"; exit 1; }; done
	$(PIP) -r requirements/talker.txt
	@touch $@

talker: $(VENV)/.talker ## rebuild the bundled checkpoint from nothing, in about 90 minutes; needs espeak-ng, flite and sox
	$(PY) -m talker.build --out checkpoints/talker

talk-eval: $(VENV)/.talker ## evaluate the bundled checkpoint through the mesh; writes out/talk.json and docs/talker.md
	$(PY) -m talker.evaluate --through-mesh

$(VENV)/.browser: requirements/browser.txt $(VENV)/.dev
	$(PIP) -r requirements/browser.txt
	@touch $@

# An environment of its own: what those clients ask for does not always go together with the mesh's.
.venv-doors/.doors: requirements/doors.txt | $(VENV)/.python
	@$(call quoted,$(PYTHON)) -m venv .venv-doors
	.venv-doors/bin/python -m pip install $(if $(CI),--quiet) --disable-pip-version-check -r requirements/doors.txt
	@touch $@

doors: dev .venv-doors/.doors ## let every client that should be able to call do so; writes out/doors.json (QUICK=1)
	@$(PY) -m bench.doors $(if $(QUICK),--quick)

page-check: $(VENV)/.browser redis ## try the page in a real browser; writes out/page.json and into docs/benchmarks.md; needs node and chromium
	@for tool in node chromium; do command -v $$tool >/dev/null || \
		{ echo "$$tool is missing; on Debian: apt-get install nodejs chromium"; exit 1; }; done
	MOSHIMESH_PAGE_JSON=out/page.json $(PYTEST) tests/browser
	$(PY) -m bench.sections page out/page.json

direct-check: $(VENV)/.talker ## measure events of conversations beside silero-vad; writes out/direct.json and into docs/benchmarks.md; needs espeak-ng, flite and sox
	$(PY) -m bench.direct --checkpoint $(call quoted,$(CHECKPOINT))
	$(PY) -m bench.sections direct out/direct.json

bench: dev ## measure engines, gateway and capacity; writes out/bench.json and docs/benchmarks.md (QUICK=1)
	$(PY) -m bench $(if $(QUICK),--quick)

bench-gpu: CHECKPOINT = kyutai/moshiko-pytorch-bf16
bench-gpu: DEVICE = cuda
bench-gpu: dev ## the same with the real weights on a CUDA machine (CHECKPOINT, DEVICE; also runs on a CPU)
	$(PY) -m bench --only checkpoint,gateway,capacity --checkpoint $(call quoted,$(CHECKPOINT)) --device $(call quoted,$(DEVICE)) \
		--out out/bench-gpu.json $(if $(QUICK),--quick)

plan: env ## say how many slots each GPU has room for and the least a step can take, by precision and context (PLAN=CHECKPOINT)
	@$(PY) -m scripts.plan $(if $(PLAN),--checkpoint $(call quoted,$(PLAN)))

build/gpu-wheels/.done: requirements/gpu.txt requirements/gateway.txt scripts/gpu_wheels.py | $(VENV)/.python
	@$(PY) -m scripts.gpu_wheels build/gpu-wheels
	@touch $@

gpu-wheels: build/gpu-wheels/.done ## gather the wheels that bench/gpu/run.sh installs on a CUDA machine without a network

build/gpu-dry/.done: requirements/gpu-machine.txt
	@$(call quoted,$(PYTHON312)) -m venv build/gpu-dry
	build/gpu-dry/bin/python -m pip install $(if $(CI),--quiet) --disable-pip-version-check -r requirements/gpu-machine.txt
	@touch $@

gpu-dry: dev gpu-wheels build/gpu-dry/.done ## try bench/gpu/run.sh on a CPU, in an environment like the CUDA machine's: 7 GB (PYTHON312)
	@$(PY) -m bench.gpu.dry --python build/gpu-dry/bin/python

soak: dev ## see what grows while callers come and go at every door and engines are killed, for MINUTES; writes out/soak.json (QUICK=1)
	@$(PY) -m bench.soak --checkpoint $(call quoted,$(CHECKPOINT)) --device $(call quoted,$(DEVICE)) --duration $(call quoted,$(MINUTES)m) \
		$(if $(QUICK),--quick)

chaos: dev ## kill, freeze and restart a mesh under live calls; writes out/chaos.json and docs/reliability.md (QUICK=1)
	$(PY) -m bench.chaos $(if $(QUICK),--quick)

fleet-check: dev ## run the manifests' pods as processes, and take some away under live calls; writes out/fleet.json
	$(PY) -m bench.fleet

trace: dev ## make a call and show where its slowest frame's time went, also out/trace.png (WAV, CHECKPOINT, TARGET, FRAME)
	@$(PY) -m bench.trace --wav $(call quoted,$(WAV)) --checkpoint $(call quoted,$(CHECKPOINT)) --device $(call quoted,$(DEVICE)) \
		$(if $(TARGET),--target $(call quoted,$(TARGET))) $(if $(FRAME),--frame $(call quoted,$(FRAME)))

profile: dev ## say what a tick's time goes to, and the bottleneck; writes out/profile.json (CHECKPOINT, DEVICE, QUICK=1)
	@$(PY) -m bench.profile --checkpoint $(call quoted,$(CHECKPOINT)) --device $(call quoted,$(DEVICE)) $(if $(QUICK),--quick)

bench-recorder: dev ## measure what traces cost and whether they tell all; writes out/recorder.json (QUICK=1: 3 minutes)
	@$(PY) -m bench.recorder $(if $(QUICK),--quick)

# Atheris has no wheel for some Pythons: then the corpus is changed by chance.
$(VENV)/.fuzz: requirements/fuzz.txt $(VENV)/.dev
	$(PIP) --only-binary atheris -r requirements/fuzz.txt || echo "no atheris for this Python: inputs are made by chance"
	@touch $@

fuzz: $(VENV)/.fuzz ## try FUZZ_INPUTS hostile inputs (100000) on each parser, a fiftieth at each door; writes out/fuzz.json
	@FUZZ_INPUTS=$(call quoted,$(FUZZ_INPUTS)) $(PY) -m scripts.trust --only fuzz "fuzz over sockets"

trust: $(VENV)/.fuzz ## attack the mesh: fuzz, isolation, overload, soak, privacy; writes out/trust.json (QUICK=1)
	@$(PY) -m scripts.trust $(if $(QUICK),--quick)

stubs: dev ## generate the Python stubs from the protos
	$(PY) -m scripts.stubs

clean: ## remove what was built, but not the environment
	rm -rf build out .mypy_cache .pytest_cache .ruff_cache
