"""Lists the packages: all of distpro_cli, and recipes/ and processes/, which lie beside it in a checkout."""

from pathlib import Path

from setuptools import find_packages, setup

shipped = [name for name in ("recipes", "processes") if (Path(__file__).parent / name).is_dir()]

setup(packages=[*find_packages(include=["distpro_cli*"]), *(f"distpro_cli.{name}" for name in shipped)])
