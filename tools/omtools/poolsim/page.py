"""The tables of docs/gossip.md from the figures of simulations; the words around them are written there."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

_BEGIN = "<!-- figures: what is between these two lines is written by the simulator -->\n"
_END = "<!-- end of figures -->\n"


def key(r: Row) -> tuple[Any, ...]:
    """What a row is about."""
    return r["nodes"], ("ours", "memberlist").index(r["preset"]), r["scene"], r["seed"]


def page(text: str, rows: list[Row]) -> str:
    """The page with new tables; ``ValueError`` if it has no place for them."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError("the page lacks the lines between which its tables stand")
    return before + begin + tables(rows) + end + after


def tables(rows: list[Row]) -> str:
    """All figures, as Markdown."""
    calm = [r for r in rows if r["scene"] == "calm"]
    out = ["### At rest, and who learns what when", ""]
    out.append("| nodes | | join known to all | leave | death | age mean | p95 | max | KB/s sent | busiest node | seeds |")
    out.append("|---|---|---|---|---|---|---|---|---|---|---|")
    goals = "| 1,000 | *goal* | | | *10 s* | | *5 s* | | *30 (sent and received: 15 each)* | | |"
    done = False
    for nodes, preset in groups(calm):
        if nodes > 1000 and not done:
            out.append(goals)
            done = True
        rs = [r for r in calm if (r["nodes"], r["preset"]) == (nodes, preset)]
        age = [f"{worst(rs, f):.1f} s" if preset == "ours" else "-" for f in ("age_mean", "age_p95", "age_max")]
        cells = [f"{nodes:,}", preset, _s(r["join"][0] for r in rs if r["join"]), _s(x for r in rs for x in r["leave"])]
        cells += [_s(x for r in rs for x in r["death"]), *age, f"{worst(rs, 'bytes_s') / 1000:.1f}", f"{worst(rs, 'busiest') / 1000:.1f}"]
        out.append(row(*cells, ", ".join(str(r["seed"]) for r in rs)))
    if not done:
        out.append(goals)
    out += ["", "### False deaths", "", "Nodes that lived and were declared dead by anybody, and in how many tables of how many nodes.", ""]
    names = {
        "loss1": "1 % loss",
        "loss10": "10 % loss",
        "loss30": "30 % loss",
        "partition": "two halves",
        "hundredth": "a hundredth cut off",
        "stalls": "5 % stalled 10 s",
    }
    out.append(row("nodes", "", *names.values(), "halves whole after", "hundredth", "seconds each", "seeds"))
    out.append("|" + "---|" * (len(names) + 6))
    bad = [r for r in rows if r["scene"] != "calm"]
    for nodes, preset in groups(bad):
        rs = [r for r in bad if (r["nodes"], r["preset"]) == (nodes, preset)]
        cells = []
        for scene in names:
            false = [r["false"] for r in rs if r["scene"] == scene]
            cells.append(f"{max(a for a, _ in false)} ({max(b for _, b in false):,})" if false else "not run")
        healed = [_whole([r for r in rs if r["scene"] == scene]) for scene in ("partition", "hundredth")]
        seconds = ", ".join(sorted({f"{r['seconds']:.0f}" for r in rs}))
        out.append(row(f"{nodes:,}", preset, *cells, *healed, seconds, ", ".join(str(s) for s in sorted({r["seed"] for r in rs}))))
    return "\n".join(out) + "\n"


def groups(rows: list[Row]) -> list[tuple[int, str]]:
    """Sizes and presets that there are, in order."""
    return list(dict.fromkeys((r["nodes"], r["preset"]) for r in sorted(rows, key=key)))


def worst(rows: list[Row], field: str) -> float:
    """The greatest."""
    return float(max(r[field] for r in rows))


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def _whole(rows: list[Row]) -> str:
    late = [r["watched"] for r in rows if r["healed"] is None]
    return f"not within {min(late):g} s" if late else _s(r["healed"] for r in rows)


def _s(times: Any) -> str:
    all_ = list(times)
    return "-" if not all_ else "never" if None in all_ else f"{max(all_):.1f} s"
