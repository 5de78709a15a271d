"""Puts runs side by side: settings that differ, scores with intervals, speed, curves, tests on the same images.

    python recipes/compare.py runs/a runs/b runs/c --out compare.html

It prints the tables and writes a page that a browser shows without a network. Two runs that were evaluated on the same
beton are compared image by image (McNemar's exact test), from their predictions.csv. Of an unfinished run only the
curves are shown. Nothing is trained or evaluated.
"""

import argparse
from pathlib import Path

from fastmlp import cli


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("runs", type=cli.path, nargs="+", help="folders of runs, two or more")
    parser.add_argument("--out", type=cli.path, default=Path("compare.html"), help="the page (default: %(default)s)")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)  # now, so that a folder that cannot be made fails at once
    with cli.loading():  # torch takes seconds, which --help need not wait for
        from fastmlp.atomic import write_atomic
        from fastmlp.training.comparison import read_comparison

    comparison = read_comparison(options.runs)
    print(comparison.text())
    write_atomic(options.out, comparison.page())
    print(options.out)


if __name__ == "__main__":
    cli.run(main)
