"""docs/gossip.md from the figures of simulations."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

_HEAD = """\
# How the pool knows itself

Every node has a view of the whole pool (`mig/pool`, a state machine without sockets, clock or chance of its own; `omdiscd` runs it on real
ones). Node ids, names, addresses and what changes seldom are *records*, fetched once by whoever lacks one. Load, free memory, guests and
pressure are *samples* of 13 bytes, numbered by their node, that travel with their age: each second a node sends the freshest to ten random
others. While all fit into one datagram (about 90 nodes) it sends all to one, to three while there is something else to tell, and probes and
their answers carry them too. A node that answers neither a probe, sent four times in a second, nor three helpers is *suspect*; a sample
that was made later, any datagram of its own, or its refutation clears it. Whoever finds it silent also tries whether its kernel takes a TCP
connection: if so it is stalled (its CPU is taken, our normal case), stays suspect and has 45 s. Otherwise it is *dead* after 4 s, 8 s if
nobody else noticed, to those who asked it in vain themselves and went on asking; who has only heard of it waits for their word, and if that
comes within 4 s asks the node himself before he believes it. A sample that was made a second after the death or later takes it back, as
does a datagram of the node itself: one that was cut off hears of all others from any of them, and whoever sees that a node lives stops
telling that it does not. Who has heard nobody for 4 s suspects all, and asks each of them once. Block, login, leave and death are passed on
at once, in a crowd of such news all that came within 50 ms together; every 10 s each node compares digests with another, so that what was
lost is found.

## Figures

Simulated: the same machines, in virtual time, on a network with 0.2 ms + exponential 0.5 ms delay, each node with a clock of its own.
`python -m omtools.poolsim` makes this page; the rows with their seeds are in [gossip.json](gossip.json). *memberlist* is this machine with
the published defaults of hashicorp/memberlist for local networks (probe 1 s, timeout 500 ms, 3 helpers, suspicion multipliers 4 and 6,
gossip 200 ms to 3, retransmit 4) and without what those lack (samples, evidence, knocks, urgent messages). It tells no loads, therefore it
sends less; its push-pull by TCP is replaced by our digests, its extra TCP ping is left out. Bytes are what a node sends in a second, IP and
UDP headers and seal included; it receives as much. Where there are several seeds or events the worst is shown. A seed gives the same
figures again on any machine.
"""


def key(r: Row) -> tuple[Any, ...]:
    """What a row is about."""
    return r["nodes"], ("ours", "memberlist").index(r["preset"]), r["scene"], r["seed"]


def page(rows: list[Row]) -> str:
    """The whole page."""
    calm = [r for r in rows if r["scene"] == "calm"]
    out = [_HEAD, "### At rest, and who learns what when", ""]
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
        healed = [_s(r["healed"] for r in rs if r["scene"] == scene) for scene in ("partition", "hundredth")]
        seconds = ", ".join(sorted({f"{r['seconds']:.0f}" for r in rs}))
        out.append(row(f"{nodes:,}", preset, *cells, *healed, seconds, ", ".join(str(s) for s in sorted({r["seed"] for r in rs}))))
    return "\n".join(out) + "\n" + _TAIL


_TAIL = """
Joining a pool of 10,000 takes a node more than 12 s until it knows everybody itself; it is known to all sooner. Loads there are too old
for the goal of 5 s, which was set for 1,000: a datagram holds a hundred samples. Of two halves of 1,000 all see all again eleven seconds
after the cut; memberlist's (without its join by TCP, which is replaced here) do not at all.

What two halves say when they meet again was a storm once. When each node had to answer and refute itself before the others believed that it
lived, all of 1,000 were whole after 31 s. When a younger sample was enough, but whoever held a node for dead still told it so, and it
refuted, all of 600 refuted within a second, and all fetched the records of all anew: 148 datagrams and 96 KB a second and node. Now nobody
refutes (25 datagrams, 26 KB; 12 and 15 at rest). Of two halves of 200, cut for 20 s only, each sends 20 datagrams in the worst half second
(65 before; 405 when each of the news was passed on by itself).

Of 1,000 at 30 % loss, in 30 s, 523 were held for dead in 3,679 tables when a probe was sent once, as SWIM does, and everybody judged who
had heard of a suspicion. A fifth of all probes failed, all were told of each, and refutations waited behind 800 other rumours: of 2,140
suspicions that ran out 2,106 had only been heard, and 2,062 had been refuted, half of them more than 8 s before. Now it is a thirtieth of
the probes, and such a pool sends 36 KB/s a node, where it sent 65; rumours still wait behind 500 others, for whose sake nobody dies now.
Of 10,000 at 10 % loss there were 45 in 5,580 tables, and none after that. The rows of 10,000 nodes are from before the last changes to
what follows a death.

After a cut the other half tells of the deaths of those on our side. In the partition of 1,000 79 were held for dead so, in 120 tables. For
a minute after a node was itself held for dead it is not believed when it tells of a death, unless we asked in vain ourselves. That is not
enough where nobody knows yet who was cut off: after cuts of 8 and 10 s 43 and 12 of 500 died of it (72 and 12 tables). Now whoever
is told of a death whose suspicion has not lasted for 4 s here asks the node himself, four times in a second, and believes it when there is
no answer. Ten are asked at once, and 50 a second: when half of a large pool is lost, the others have 4 s, or 8 s if we are told of the
death first. Without the second bound 10,000 sent 3 million datagrams in 70 ms after a cut of 20 s, as each answer told of more deaths. None
dies so after cuts of 8, 10, 12, 16 and 20 s. Of 400 deaths, one after the other in pools of 12, half were known to all after 6.0 s, 95 %
after 7.0 s, and the last after 7.9 s.

To wait for 4 or 8 s and not to ask killed nobody either in pools of up to 1,000. In larger ones it was too short to hear of all who live:
where 1,000 nodes told their loads so seldom that these were as old as those of 10,000, and each rumour once, 38 were held for dead in 119
tables after a cut of 60 s. And each hop of such news took as long: of 10,000, 60 s after the loss of half of them, each knew of half of the
deaths. When whoever is told asks, none of those 1,000 is held for dead, and they send 350 datagrams each in the minute after the cut (880);
at its end some still miss somebody (whole after 58 s before, after 48 s without the bound of 50 a second).

Two halves of 10,000, cut for 60 s: until its end nobody was held for dead on his own side, and the node looked at knew of 61 % of the
deaths of the other (123 CPU minutes, 20 GB; 56 % when nobody asked, 96 % when all believed what they were told, and then 8,725 were held
for dead, in 36,322 tables, half a second after the cut). What followed was not simulated to its end: within 0.13 s 8,081 nodes refuted what
the other half suspected them of, and all began to fetch the records of all, more than a thousand datagrams a second and node. Since then
who only refutes keeps its record in the eyes of all, and nobody fetches it (`mig/pool/incarnations.py`): of two halves of 600, cut for 20
s, 250 refute, and each sends 99 datagrams and 45 KB a second in the worst half second (153 and 69 before). Of 2,000 nearly all refute: 331
datagrams and 276 KB (811 and 666), and 12 as at rest five seconds after the cut (89). Those 10,000 were not simulated anew. Where all
deaths are known before the cut ends, as in the rows above, hardly anybody refutes.

Of a hundredth of 1,000, ten nodes that were cut off together, each held the others for dead at some time (80 tables), as one in a hundred
of its datagrams went to its own side; since whoever takes himself for alone asks everybody once, none did.

A node that is stalled for longer than it may be suspect and whose kernel does not answer either (a suspended laptop, a paused virtual
machine) is declared dead; when it wakes up it notices from its clock that it was away, accuses nobody, and refutes.

## Real daemons

Twelve `omdiscd` in a lab of a machine of two CPUs that had much else to do (`tests/cluster/test_pool_of_twelve.py`): all see each other
0.1 to 1.8 s after the last has started (goal 3 s); a death is known to all others after 5.1, 5.8 and 6.1 s (goal 8 s); 1.8 s after a cut
of 60 s between two halves all see all again (0.7 s when all refuted). At rest on a quiet machine each takes 0.37 to 0.41 % of a core,
helpers included (median 0.389, over 60 s; goal 0.5 %), and 41 MB with its relay (goal 45 MB); its own 35 MB are half shared between daemons
of one machine.

## "I don't see all my nodes"

| what is so | what happens |
|---|---|
| no default route, or `127.0.1.1` in /etc/hosts | nothing: the address is that of an interface, the host name is never asked |
| two network cards | hellos go out on the card of the node's address; a line at the start names the others, `omdiscd -i IF,IF` uses both |
| multicast is dropped (IGMP snooping, clouds, Wi-Fi) | one living seed is enough; a node alone for 30 s says so in its log |
| only IPv6 | the group `multicast6` is used |
| the address changes (DHCP) | `omdiscd` starts anew with its id; guests go on after some 10 s, as their connections are made anew |
| the address goes and none comes | a line a minute; it goes on as soon as the address is back |
| an interface comes back | its group is joined again |
| a suspended laptop | it is declared dead, wakes up, accuses nobody, is alive again within seconds |
| a cloned disk, machine id included | the log names the twin; the one whose id is not that of its address takes another |
| a wrong key | counted, a line a minute and source; nothing else happens |

## The wire

`mig/pool/wire.py`. Append-only: keys, positions in a record and bytes of a sample keep their meaning for ever; what is unknown is ignored,
what is missing has its default. A daemon says its version in `v` and refuses only what is older than it understands.
"""  # a table's row is a line


def groups(rows: list[Row]) -> list[tuple[int, str]]:
    """Sizes and presets that there are, in order."""
    return list(dict.fromkeys((r["nodes"], r["preset"]) for r in sorted(rows, key=key)))


def worst(rows: list[Row], field: str) -> float:
    """The greatest."""
    return float(max(r[field] for r in rows))


def row(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def _s(times: Any) -> str:
    all_ = list(times)
    return "-" if not all_ else "never" if None in all_ else f"{max(all_):.1f} s"
