.PHONY: format lint types test bench

format:
	ruff format .
	ruff check --fix .

lint:
	ruff format --check .
	ruff check .

types:
	mypy

test:
	pytest

bench:
	python benchmarks/step_cost.py
	python benchmarks/dropping.py
