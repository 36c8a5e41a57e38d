"""Studies train variants of a config with several seeds, and report the scores with error bars."""

from experiments.study.queue import Job, run_jobs
from experiments.study.report import write_report
from experiments.study.results import Study, read_study
from experiments.study.sweep import PlannedRun, Sweep, expand
from experiments.study.sweep_file import load_sweep

__all__ = [
    "Job",
    "PlannedRun",
    "Study",
    "Sweep",
    "expand",
    "load_sweep",
    "read_study",
    "run_jobs",
    "write_report",
]
