.PHONY: format lint types test bench gpu soak zoo

format:
	ruff format .
	ruff check --fix .

lint:
	ruff format --check .
	ruff check .

types:
	mypy

test:
	pytest -n 2

bench:
	python benchmarks/step_cost.py
	python benchmarks/dropping.py
	python benchmarks/memory.py
	python benchmarks/loader.py

# Tests, costs and, with CIFAR10 set, all methods on all of CIFAR-10; nine minutes a call, resumes where it stopped.
gpu:
	python benchmarks/gpu.py --page docs/gpu.md

# Mutated files and killed runs, about an hour; the tests hold a short form.
soak:
	python -m tests.soak --files 10000 --kills 200

# Every timm family, its smallest member, as teacher and as student; resumes where it stopped.
zoo:
	python benchmarks/zoo.py --page docs/zoo.md
