"""The page of the benchmarks says what the committed figures say."""

from __future__ import annotations

import re
from pathlib import Path

from bench import page

TOP = Path(__file__).parents[1]
BENCH = TOP / "bench"


def test_the_page_is_made_of_the_figures() -> None:
    assert (BENCH / "README.md").read_text() == page.render(page.load(BENCH))


def test_every_part_has_a_module_and_figures() -> None:
    assert set(page.load(BENCH)) == set(page.PARTS)
    assert all((BENCH / f"{name}.py").exists() for name in page.PARTS)


def test_a_page_without_figures_says_so() -> None:
    assert page.render({}).count("Not measured yet.") == len(page.PARTS)


def test_the_plot_is_shown_and_is_small() -> None:
    assert "(docs/speed.svg)" in (TOP / "README.md").read_text()
    assert "(../docs/speed.svg)" in (BENCH / "README.md").read_text()
    plot = (TOP / "docs" / "speed.svg").read_text()
    assert len(plot) < 150_000
    assert "<dc:date>" not in plot


def test_no_module_of_a_benchmark_is_over_420_lines() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in BENCH.rglob("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines > 420} == {}


def test_no_two_modules_have_names_that_differ_by_a_suffix() -> None:
    names = {path.stem for path in BENCH.glob("*.py")}
    assert {(a, b) for a in names for b in names if re.fullmatch(rf"{a}[a-z]{{1,4}}", b)} == set()
