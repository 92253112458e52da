"""The benchmark's arithmetic and tables."""

from __future__ import annotations

from omtools.bench import table
from omtools.bench.memory import RANDOM, Link, first_second, link_table
from omtools.bench.samples import CRIU, HERE_TO_N2, LAZY, ONWARD, RUNC, Sample, ratio, row, rows
from omtools.bench.target import answers


def sample(what: str, mib: int, number: int, felt: float, **more: float) -> Sample:
    return Sample(what, mib, number, felt, more.get("total", 2 * felt), more.get("said", 0.0), more.get("prepare", 0.0))


def test_a_row_holds_medians_and_the_range() -> None:
    found = row([sample(CRIU, 4, i, felt, total=total) for i, (felt, total) in enumerate([(30, 100), (10, 500), (20, 300)])])
    assert (found.felt, found.low, found.high, found.total, found.runs) == (20, 10, 30, 300, 3)


def test_steps_that_a_run_lacks_count_as_nothing() -> None:
    runs = [Sample(CRIU, 4, 0, 1, 1, steps={"dump": 4.0}), Sample(CRIU, 4, 1, 1, 1, steps={"dump": 6.0, "copy": 2.0})]
    assert row(runs).steps == {"dump": 5.0, "copy": 1.0}


def test_rows_come_by_size_and_ours_first() -> None:
    found = rows([sample(RUNC, 64, 0, 1), sample(CRIU, 4, 0, 1), sample(ONWARD, 4, 0, 1), sample(HERE_TO_N2, 64, 0, 1)])
    assert [(r.mib, r.what) for r in found] == [(4, ONWARD), (4, CRIU), (64, HERE_TO_N2), (64, RUNC)]


def test_a_ratio_is_taken_within_each_round() -> None:
    # round 1 was disturbed: both took ten times as long, and the ratio stays
    runs = [sample(HERE_TO_N2, 4, i, felt) for i, felt in enumerate([10, 100, 20])]
    runs += [sample(RUNC, 4, i, felt) for i, felt in enumerate([30, 300, 50])]
    assert ratio(runs, RUNC, 4) == 3
    assert ratio(runs, CRIU, 4) is None
    assert ratio(runs, RUNC, 64) is None


def test_rounds_that_only_one_side_has_do_not_count() -> None:
    runs = [sample(HERE_TO_N2, 4, 1, 10), sample(RUNC, 4, 0, 1000), sample(RUNC, 4, 1, 20)]
    assert ratio(runs, RUNC, 4) == 2


def test_a_target_tells_whole_lines_only() -> None:
    assert answers("ready\nlongest 1.500\nlongest 72.250\nlonge") == [1.5, 72.25]
    assert answers("") == []
    assert answers("longest 3.1") == []


def test_tables_are_aligned() -> None:
    lines = table.table(["move", "ms"], [["a", "1"], ["long name", "1234"]]).splitlines()
    assert lines[1] == "|-----------|-----:|"
    assert lines[2] == "| a         |    1 |"
    assert len({len(line) for line in lines}) == 1


def test_milliseconds_have_no_more_digits_than_they_mean() -> None:
    assert [table.ms(x) for x in (0, 0.83, 9.94, 57.2, 1384.4)] == ["", "0.8", "9.9", "57", "1384"]


def test_the_report_has_a_line_for_each_kind_and_ratio() -> None:
    runs = [sample(HERE_TO_N2, 4, 0, 10, said=9, prepare=700, total=800), sample(CRIU, 4, 0, 30), sample(RUNC, 4, 0, 50)]
    assert [line.split("|")[1].strip() for line in table.moves(runs).splitlines()[2:]] == [HERE_TO_N2, CRIU, RUNC]
    assert "3.0 x" in table.ratios(runs)
    assert "5.0 x" in table.ratios(runs)
    assert table.ratios(runs[:1]) == ""


def test_steps_of_the_first_move_stand_side_by_side() -> None:
    runs = [Sample(HERE_TO_N2, mib, 0, 1, 1, steps={"dump": float(mib)}) for mib in (4, 64)]
    assert table.steps(runs).splitlines()[2].split() == ["|", "dump", "|", "4.0", "|", "64", "|"]


def test_the_first_second_is_compared_within_each_round() -> None:
    def link(kind: str, number: int, work: int, all_ms: float = 0.0) -> Link:
        return Link(kind, 64, number, 50.0, 900.0, 64 << 20, work, 10_000, all_ms)

    found = [link(RANDOM, 0, 500, 1000.0), link(LAZY, 0, 10), link(RANDOM, 1, 5000, 1000.0), link(LAZY, 1, 50), link(LAZY, 2, 1)]
    assert first_second(found, 64) == [50, 100]
    assert first_second(found, 1024) == []
    lines = link_table(found).splitlines()
    assert [line.split("|")[7].strip() for line in lines[2:4]] == ["1.86", ""]  # nobody waited for the peer's last page
    assert lines[-1] == f"Work in the first second, beside {LAZY}: 64 MiB: 75.0 times (50.0-100.0)."
    assert "beside" not in link_table([x for x in found if x.kind == RANDOM])
