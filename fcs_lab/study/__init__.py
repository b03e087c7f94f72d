"""The study: methods × tasks × images on any model and folder, resumable, in one process or many.

`run(config, out)` runs what is missing of it, `records(out)` gives what was measured as a pandas frame; from the shell,
`python -m fcs_lab.study study.toml -o results/`. It takes the extra 'study'.
"""

from importlib.util import find_spec

for package in ("accelerate", "filelock", "pandas", "torchmetrics"):
    if find_spec(package) is None:
        raise ImportError(f"{package} is not installed; a study needs the extra 'study': pip install 'fcs_lab[study]'")

from fcs_lab.study.config import Study, read_study  # noqa: E402
from fcs_lab.study.run import dry_run, records, run  # noqa: E402

__all__ = ["Study", "dry_run", "read_study", "records", "run"]
