# Two commands on a fresh machine: `make demo` does the main job, `make test` passes the tests.
PYTHON ?= python3
DEMO_ENV = build/demo-env
ENV = .venv
PIP_FLAGS = --quiet --disable-pip-version-check

.PHONY: demo test lint peers clean

# The base and `evaluate`: what a scanner and its user need; no torch.
demo: $(DEMO_ENV)/ready
	$(DEMO_ENV)/bin/lfmri demo --out out

# Two files of tests at a time, one thread of PyTorch each: more would wait for one another on two cores.
test: $(ENV)/ready
	OMP_NUM_THREADS=1 $(ENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(ENV)/ready
	$(ENV)/bin/ruff check .
	$(ENV)/bin/ruff format --check .
	$(ENV)/bin/mypy

# System programs and data that some tests talk to: a browser, a brain with known LPIPS values, and a console's peers.
peers:
	apt-get update --quiet=2
	apt-get install --quiet=2 --yes --no-install-recommends chromium mricron-data \
		dcmtk orthanc dicom3tools ismrmrd-tools dcm2niix nifti-bin iproute2 util-linux curl systemd

$(DEMO_ENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(DEMO_ENV)
	$(DEMO_ENV)/bin/pip install $(PIP_FLAGS) --editable '.[evaluate]'
	touch $@

$(ENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(ENV)
	$(ENV)/bin/pip install $(PIP_FLAGS) --upgrade 'pip>=25.1'
	$(ENV)/bin/pip install $(PIP_FLAGS) --editable '.[evaluate,train,export,trt,openvino,mrd,dicom]' --group test --group lint
	touch $@

clean:
	rm -rf $(ENV) build out
