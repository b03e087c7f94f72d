"""`python -m fcs_lab.study study.toml -o results/`: run a study, or go on with it; `accelerate launch -m` splits it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fcs_lab.study.run import dry_run, outcome
from fcs_lab.study.store import Full, stores
from fcs_lab.study.tables import report


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 if something failed, 130 if it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m fcs_lab.study", description=__doc__)
    parser.add_argument("study", nargs="?", help="a TOML file, or 'paper' or 'bundled', the package's own")
    parser.add_argument("-o", "--output", type=Path, help="the results folder; what it has is not computed again")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="write the tables of a folder anew, computing nothing")
    parser.add_argument("--dry-run", action="store_true", help="tell cells, evaluations and the time, and stop")
    parser.add_argument("--other", action="store_true", help="take the folder although it has another study's results")
    parser.add_argument("--retry", action="store_true", help="try anew what failed")
    asked = parser.parse_args(arguments)
    try:
        if asked.report is not None:
            for store in stores(asked.report):
                report(store, store.study(), command=sys.argv)
            _say(asked.report)
            return 0
        if asked.study is None or asked.output is None:
            parser.error("a study and -o FOLDER are needed, or --report FOLDER")
        if asked.dry_run:
            print(dry_run(asked.study, asked.output))
            return 0
        ended = outcome(asked.study, asked.output, other=asked.other, retry=asked.retry)
    except Full as error:
        print(error.strerror, file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    for failure in ended.failures:
        print(failure, file=sys.stderr)
    _say(asked.output)
    return 130 if ended.interrupted else 1 if ended.failures else 0


def _say(out: Path) -> None:
    for store in stores(out):
        print(f"wrote {store.folder}/table.md, table.csv, pareto.png and sheet.png")


if __name__ == "__main__":
    sys.exit(main())
