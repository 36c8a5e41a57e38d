"""Compares configs/digits.py, with five seeds, with scikit-learn's classifiers on the same images.

    python docs/digits.py runs/digits

The command runs the study configs/sweeps/digits.py in the given folder, or reads it if it is done. It fits
the classifiers on the pixels of the training split, from 0 to 1, and prints the table of docs/images.md.
"""

import statistics
import sys
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from experiments import cli, launch
from experiments.config_files import load_config
from experiments.run_folder import Run
from experiments.score_files import ScoreFiles
from transformer.data.image_sets import prepare_images
from transformer.tasks import resolve

SEEDS = 5
CLASSIFIERS = {
    "SVC, its defaults (RBF kernel)": SVC(),
    "logistic regression": LogisticRegression(max_iter=1_000),
}


def main(root: str) -> int:
    sweep = ["--sweep=configs/sweeps/digits.py", f"--root={root}", f"--seeds={SEEDS}"]
    if status := cli.call(launch, sweep):
        return status
    print("\n| classifier | validation accuracy, % | test accuracy, % |\n| --- | ---: | ---: |")
    folders = sorted(Path(root).glob("vision_transformer/*/"))
    cells = []
    for split in ("validation", "test"):
        files = [ScoreFiles(Run(folder), split, {}) for folder in folders]
        scores = [100 * file.read_scores()["accuracy"] for file in files]
        cells.append(f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}")
    print(f"| configs/digits.py, {len(folders)} seeds | {' | '.join(cells)} |")
    images = prepare_images(resolve(load_config("configs/digits.py", {})).data)
    splits = {name: images.split(name) for name in images.sizes}
    pixels = {name: split.images.reshape(len(split), -1) / 255 for name, split in splits.items()}
    for name, classifier in CLASSIFIERS.items():
        classifier.fit(pixels["train"], splits["train"].labels)
        scores = [
            100 * classifier.score(pixels[split], splits[split].labels) for split in ("validation", "test")
        ]
        print(f"| {name} | {scores[0]:.1f} | {scores[1]:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
