"""Writes a study's report anew, from its folder alone.

python -m experiments.report --root=runs/positions
"""

from pathlib import Path

from absl import flags

from experiments import entry
from experiments.launcher.report import markdown, write_report
from experiments.launcher.results import read_study

ROOT = flags.DEFINE_string("root", None, "The study's folder.", required=True)


def main() -> None:
    root = Path(ROOT.value)
    study = read_study(root)
    folder = write_report(root, study)
    print(f"{markdown(study)}\n{folder}: table and by_length (.md, .png), table.csv, runs.csv")


if __name__ == "__main__":
    entry.run(main)
