"""Packaging. `make env` installs it with the versions in constraints.txt."""

from setuptools import find_packages, setup

IMAGES = ["pillow", "scikit-learn"]
TEST = ["beartype", "hypothesis", "pytest", "pytest-xdist", "statsmodels"]

setup(
    name="transformer-reference",
    version="0.1.0",
    description='"Attention Is All You Need" to the letter, its rivals and its successors, in JAX and Flax',
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["transformer*", "experiments*", "configs*"]),
    package_data={
        "experiments": ["explorer.html", "explorer.js", "explorer_matrices.js", "theme.css"],
        "experiments.study": ["overview.html", "page.html", "study.css"],
    },
    install_requires=[
        "absl-py",
        "array_record",
        "flax",
        "grain",
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "jax>=0.10",
        "jinja2",
        "jaxtyping",
        "matplotlib",
        "ml_collections",
        "num2words",
        "numpy",
        "optax",
        "orbax-checkpoint",
        "regex",
        "rich",
        "sacrebleu",
        "scipy",
        "sentencepiece",
        "tensorboardX",
        "tensorflow-datasets",
    ],
    extras_require={
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "prepare": ["tensorflow-cpu"],  # only to prepare TFDS's own sets, never to train
        "peers": ["ctranslate2", "torch", "transformers"],
        "images": IMAGES,  # the data set digits, and image files
        "test": TEST,
        "dev": [*TEST, *IMAGES, "ruff"],
        "docs": ["myst-nb", "sphinx", "sphinx-book-theme"],
    },
)
