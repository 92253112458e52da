"""What mosmon shows and does, without a terminal."""

from __future__ import annotations

from typing import Any

import pytest
from omtools.mosmon import chart, tables
from omtools.mosmon.canvas import ASCII, UTF8, Canvas, Glyphs, Style
from omtools.mosmon.chart import Layout, Quantity
from omtools.mosmon.model import HELP, Model, Order, Quit, Snapshot, View


def node(name: str, **k: Any) -> dict[str, Any]:
    return {
        "id": 1, "name": name, "addr": "10.0.0.1", "state": "alive", "speed": 1.0, "cpus": 1.0, "load": 0.5, "mem_total": 4 << 30,
        "mem_free": 1 << 30, "guests": 0, "accepting": True, "why_not": "", "age_s": 0.4,
    } | k  # fmt: skip


def guest(pid: int, **k: Any) -> dict[str, Any]:
    return {
        "pid": pid, "home": "n1", "where": "n2", "state": "running", "nmigs": 1, "locked": False, "cantmove": [], "cpu_s": 61.0,
        "rss": 5 << 20, "uid": 0, "comm": "job", "role": "agent",
    } | k  # fmt: skip


def pool(count: int) -> Snapshot:
    return Snapshot([node(f"n{i}", load=i / count) for i in range(1, count + 1)], [guest(70), guest(71, comm="other")], [], "n1")


def model(snapshot: Snapshot, **k: Any) -> Model:
    m = Model(**k)
    m.update(snapshot)
    return m


def press(m: Model, *keys: str) -> list[Any]:
    return [a for k in keys for a in m.key(k)]


def text(m: Model, width: int = 80, height: int = 24) -> str:
    return "\n".join(m.render(width, height).lines())


# -- the chart --------------------------------------------------------------------------------------------------------------------


def drawn(nodes: list[dict[str, Any]], q: Quantity, layout: Layout, width: int = 40, height: int = 14, glyphs: Glyphs = ASCII) -> list[str]:
    c = Canvas(width, height)
    chart.draw(c, nodes, q, layout, glyphs, rows=(0, height))
    return c.lines()


def heights(lines: list[str], char: str = "#") -> list[int]:
    """The heights of the bars, from left to right."""
    columns = [sum(line[x : x + 1] == char for line in lines) for x in range(max(map(len, lines)))]
    return [h for h in columns if h]


def test_a_bar_is_as_high_as_its_load() -> None:
    lines = drawn([node("a", load=0.5), node("b", load=1.0), node("c", load=0.0)], Quantity.LOAD, Layout.TIGHT, height=13)
    full = 11  # 13 rows without the axis and one row of names
    assert heights(lines) == [full // 2, full]


def test_a_little_load_is_seen() -> None:
    assert heights(drawn([node("a", load=0.01)], Quantity.LOAD, Layout.TIGHT)) == [1]


def test_partial_blocks() -> None:
    lines = drawn([node("a", load=0.55)], Quantity.LOAD, Layout.TIGHT, height=12, glyphs=UTF8)
    assert "▄" in "".join(lines) and heights(lines, "█") == [5]  # 5.5 of 10 rows


def test_used_memory_is_solid_and_free_is_plus() -> None:
    lines = drawn([node("a", mem_total=10 << 30, mem_free=4 << 30)], Quantity.MEMORY, Layout.TIGHT, height=12)
    assert heights(lines) == [6] and heights(lines, "+")[-1] == 4


def test_a_log_scale_shows_a_hundredth_at_a_third() -> None:
    lines = drawn([node("a", load=1.0), node("b", load=0.01)], Quantity.LOG_LOAD, Layout.TIGHT, height=14)
    assert heights(lines) == [12, 4]


def test_speed_shows_the_cpus() -> None:
    assert "8" in "\n".join(drawn([node("a", speed=2.0, cpus=8)], Quantity.SPEED, Layout.TIGHT)[:-1])


def test_raw_memory_counts_caches_as_used() -> None:
    of = {"mem_total": 10 << 30, "mem_free": 9 << 30}
    nodes = [node("a", mem_unused=3 << 30, **of), node("b", mem_unused=0, **of), node("c", mem_unused=-1, **of), node("d", **of)]
    lines = drawn(nodes, Quantity.RAW_MEMORY, Layout.TIGHT, height=13)
    assert heights(lines) == [7, 10] and "".join(lines).count("?") == 2, "who does not tell is not drawn full"


def test_utilizability_falls_with_memory_pressure() -> None:
    lines = drawn([node("a"), node("b", psi_mem=50.0)], Quantity.UTILIZABILITY, Layout.TIGHT, height=12)
    assert heights(lines) == [10, 5]


def test_one_that_does_not_answer_is_not_shown_as_idle() -> None:
    assert "?" in "".join(drawn([node("a", state="suspect", load=1.0), node("b")], Quantity.LOAD, Layout.TIGHT))


def test_what_is_said_at_the_foot_and_in_the_help_fits_80_columns() -> None:
    m = model(pool(3))
    for keys in ("c", "p", "n", "e", "?"):
        press(m, keys)
        assert "…" not in m.render(80, 24).lines()[-1]
    lines = HELP.splitlines()
    assert max(map(len, lines)) <= 79 and len(lines) <= 23


def test_dead_nodes_say_so() -> None:
    lines = drawn([node("a", state="dead", load=1.0), node("b")], Quantity.LOAD, Layout.TIGHT)
    assert [c for line in lines for c in line if c in "DEA"] == list("DEAD")


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["n1", "n2", "n10"], ["1", "2", "10"]),
        (["lab-a", "lab-b"], ["a", "b"]),
        (["n10", "n11"], ["10", "11"]),
        (["lab", "lab2"], ["lab", "lab2"]),
        (["alone"], ["alone"]),
        (["x", "y"], ["x", "y"]),
    ],
)
def test_labels(names: list[str], short: list[str]) -> None:
    assert chart.labels(names) == short


def test_automatic_numbering() -> None:
    assert chart.choose(Layout.AUTO, 3, 70, 2) is Layout.WIDE
    assert chart.choose(Layout.AUTO, 30, 70, 2) is Layout.VERTICAL
    assert chart.choose(Layout.AUTO, 60, 70, 2) is Layout.TIGHT
    assert chart.choose(Layout.WIDE, 400, 70, 3) is Layout.WIDE


@pytest.mark.parametrize(("top", "end"), [(0, 1), (0.3, 0.5), (1.0, 1.0), (1.01, 2), (3, 5), (7, 10), (130, 200)])
def test_a_scale_ends_at_a_round_number(top: float, end: float) -> None:
    assert chart.ceiling(top) == pytest.approx(end)


@pytest.mark.parametrize("count", [1, 3, 40, 400])
@pytest.mark.parametrize("size", [(80, 24), (250, 70), (20, 6), (1, 1)])
@pytest.mark.parametrize("key", ["l", "L", "s", "m", "r", "u", "w", "v", "V", "a", "p", "n", "e", "?", "t", "d"])
def test_every_picture_fits_its_window(count: int, size: tuple[int, int], key: str) -> None:
    m = model(pool(count))
    press(m, key)
    canvas = m.render(*size)
    assert len(canvas.text) == size[1] and {len(r) for r in canvas.text} == {size[0]}


def test_four_hundred_nodes_are_seen_by_scrolling() -> None:
    m = model(pool(400))
    assert "nodes 1-" in text(m) and "of 400" in text(m)
    press(m, "end")
    assert "-400 of 400" in text(m)
    press(m, "right")
    assert "-400 of 400" in text(m)
    press(m, "home")
    assert "nodes 1-" in text(m)
    assert "of 400:" not in text(m, 450, 40)


def test_totals_weigh_a_node_by_its_power() -> None:
    said = chart.totals([node("a", cpus=3, load=1.0), node("b", cpus=1, load=0.0), node("c", state="dead", cpus=8)])
    assert "nodes 2 of 3" in said and "CPUs 4 " in said and "load 0.75" in said


def test_dead_nodes_only_on_demand() -> None:
    m = model(Snapshot([node("n1"), node("n2", state="dead")], me="n1"))
    assert [n["name"] for n in m.nodes()] == ["n1"]
    press(m, "d")
    assert [n["name"] for n in m.nodes()] == ["n1", "n2"]


def test_nodes_are_in_their_natural_order() -> None:
    assert [n["name"] for n in model(pool(11)).nodes()][-2:] == ["n10", "n11"]


# -- tables -----------------------------------------------------------------------------------------------------------------------


def test_a_filter_wants_every_word() -> None:
    rows = [guest(1, comm="awk"), guest(2, comm="xz", where="n3")]
    assert [r["pid"] for r in tables.matching(rows, tables.PROCESSES, "XZ n3")] == [2]
    assert [r["pid"] for r in tables.matching(rows, tables.PROCESSES, "xz n2")] == []


def test_typing_a_filter_and_dropping_it() -> None:
    m = model(pool(3))
    press(m, "p", "/", *"othxx", "backspace", "backspace", "enter")
    assert [r["pid"] for r in m.rows()] == [71] and "filter: oth" in text(m)
    press(m, "/", "esc")
    assert len(m.rows()) == 2


def test_sorting_by_another_column_and_backwards() -> None:
    m = model(Snapshot(guests=[guest(1, home="b"), guest(2, home="a")]))
    press(m, "p", ">")
    assert [r["pid"] for r in m.rows()] == [2, 1]
    press(m, "R")
    assert [r["pid"] for r in m.rows()] == [1, 2]
    press(m, "<", "R")
    assert [r["pid"] for r in m.rows()] == [1, 2]


def test_the_cursor_stays_on_its_process() -> None:
    m = model(Snapshot(guests=[guest(5), guest(6)]))
    press(m, "p", "down")
    m.update(Snapshot(guests=[guest(3), guest(4), guest(5), guest(6)]))
    assert m.rows()[m.places[View.PROCESSES].cursor]["pid"] == 6


def test_a_long_table_scrolls_with_the_cursor() -> None:
    m = model(Snapshot(guests=[guest(i) for i in range(1, 101)]))
    press(m, "p")
    text(m)
    press(m, "end")
    assert " 100  n1" in text(m) and "   1  n1" not in text(m)


def test_events_come_latest_first_with_pause_and_reason() -> None:
    e = {
        "t": 1.0,
        "kind": "move",
        "pid": 7,
        "comm": "awk",
        "from": "n1",
        "to": "n2",
        "outcome": "arrived",
        "pause_ms": 41.7,
        "reason": "cheaper",
    }
    m = model(Snapshot(events=[e, e | {"t": 2.0, "pid": 8, "outcome": "failed", "error": "no route"}]))
    press(m, "e")
    lines = text(m, 120).splitlines()
    assert "8" in lines[2] and "failed n1 -> n2" in lines[2] and "no route" in lines[2]
    assert "arrived n1 -> n2, paused 42 ms: cheaper" in lines[3]


def test_control_characters_of_a_name_do_not_reach_the_terminal() -> None:
    m = model(Snapshot(guests=[guest(1, comm="a\x1b[2Jb\n")]))
    press(m, "p")
    assert "a?[2Jb?" in text(m)


# -- orders -----------------------------------------------------------------------------------------------------------------------


def test_moving_a_process() -> None:
    m = model(pool(3))
    assert press(m, "p", "enter") == []
    assert "move job (70) from n2 to (node, home, balance):" in text(m)
    (order,) = press(m, *"n3", "enter")
    assert isinstance(order, Order) and (order.op, order.args) == ("migrate", {"pid": 70, "to": "n3"})
    assert press(m, "M", "esc") == [] and m.prompt is None


def test_a_guest_from_elsewhere_is_named_by_its_pid_here() -> None:
    m = model(Snapshot(guests=[guest(70, role="keeper", host_pid=4711)]))
    (order,) = press(m, "p", "H")
    assert order.args == {"pid": 4711, "to": "home"}


def test_locking_and_unlocking() -> None:
    m = model(Snapshot(guests=[guest(70)]))
    assert press(m, "p", "K")[0].op == "lock"
    m.update(Snapshot(guests=[guest(70, locked=True)]))
    assert press(m, "K")[0].op == "unlock"


def test_expelling_asks_first_and_means_the_selected_node() -> None:
    m = model(Snapshot([node("n1"), node("n2", id=2), node("n3", id=3, accepting=False)], me="n1"))
    assert press(m, "n", "X") == [] and "expel all guests from n1" in text(m)
    assert press(m, "n") == []
    (order,) = press(m, "down", "X", "y")
    assert (order.op, order.args) == ("expel", {"node": "2"})
    assert [(o.op, o.args) for o in press(m, "B", "down", "B")] == [("block", {"node": "2"}), ("noblock", {"node": "3"})]


def test_keys_on_an_empty_table_do_nothing() -> None:
    m = model(Snapshot([node("n1")], me="n1"))
    assert press(m, "p", "up", "down", "enter", "K", "H", "R", "<") == []
    assert "no job or guest" in text(m)


def test_quit_and_help() -> None:
    m = model(pool(1))
    press(m, "?")
    assert "moves the selected" in text(m) or "move the selected" in text(m)
    assert press(m, "x", "q") == [Quit()]


def test_a_lost_daemon_leaves_the_last_picture_and_says_so() -> None:
    m = model(pool(2))
    m.update(Snapshot(error="omdiscd is not running on this machine"))
    assert "omdiscd is not running" in text(m).splitlines()[-1] and len(m.nodes()) == 2
    m.update(pool(2))
    assert "not running" not in text(m)


def test_a_message_stays_until_the_next_key() -> None:
    m = model(pool(1))
    m.say("job (70): moved to n3", Style.GOOD)
    assert "moved to n3" in text(m)
    press(m, "t")
    assert "moved to n3" not in text(m)
