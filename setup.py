"""The packages of the wheel: every folder of the rooms that has an ``__init__.py``. All else is in pyproject.toml."""

from setuptools import find_packages, setup

ROOMS = ("kernels", "pipelines", "profiles", "cli")  # beside dittools/, and imported under its name

setup(
    package_dir={"dittools": "dittools", **{f"dittools.{room}": room for room in ROOMS}},
    packages=[
        "dittools",
        *(f"dittools.{name}" for name in find_packages("dittools")),
        *(f"dittools.{room}" for room in ROOMS),
        *(f"dittools.{room}.{name}" for room in ROOMS for name in find_packages(room)),
    ],
)
