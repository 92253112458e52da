"""The node's configuration: one flat TOML file, ``/etc/mig/omdiscd.toml``.

Every key has a default that suits a machine that nobody configured.  Each knob says what it is, which way to turn it, what that costs
and why its default is what it is.  Unknown keys and wrong types are errors: a typing mistake must not silently be a default.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from mig import paths
from mig.adaptive.rules import Rejoin
from mig.economy import policies
from mig.errors import BadInput

AUTO = ("mosrun", "all", "none")
POLICIES = tuple(policies.BUILT_IN)


@dataclass(frozen=True)
class Config:
    """All knobs of one node.  Seconds, bytes and bytes/s unless the comment says otherwise."""

    # -- who this node is ---------------------------------------------------------------------------------------------------------

    # Number of the node, 1..65535, unique in the pool.  0: the low 16 bits of its IPv4 address, which are unique inside one /16 network
    # and stay the same as long as the address does.  Set it where addresses come from DHCP or from several networks.
    id: int = 0
    # Name shown to people and accepted wherever a node is asked for.  "": the host name.
    name: str = ""
    # Address that peers use.  "": the first IPv4 address of the first interface in `interfaces`, else of the default route.
    addr: str = ""
    # UDP and TCP port, equal on all nodes of a pool.  Two pools on one wire need two ports (or two keys: then they ignore each other).
    port: int = 7230

    # -- finding the others -------------------------------------------------------------------------------------------------------

    # Interfaces on which hellos are sent and heard; `omdiscd -i` overrides it.  Empty: the one that has `addr`.
    interfaces: tuple[str, ...] = ()
    # Multicast group of the hellos (site-local scope, hop limit 1).  "": no multicast.  It costs one datagram a `hello_s` and interface.
    multicast: str = "239.192.72.30"
    # The same for nodes whose address is IPv6.
    multicast6: str = "ff15::6d69:6721"
    # "ADDR" or "ADDR:PORT" of nodes to try where multicast is blocked.  One living seed suffices: it tells of all the others.
    seeds: tuple[str, ...] = ()
    # Interval of hellos.  Shorter: a new node is found sooner; cost: a datagram to the group and to each seed that is not alive.  In pools
    # of more than 16 nodes each says it more seldom, so that all together send about 16 in this time.
    # For its first 5 s a node says hello each second, so the default matters only after a broken network has healed.
    hello_s: float = 5.0
    # Interval of load samples in the gossip, and of probes of whether another node lives.  Information is about ln(nodes) / 3 intervals
    # old in pools up to 90 nodes, 2 s at 1,000 (docs/gossip.md).  Shorter: fresher; cost: bytes and CPU time grow with 1/interval.  One
    # second is a tenth of what a move takes to pay off, and the balancer asks its targets for their live state anyway.
    gossip_s: float = 1.0
    # Datagrams in each interval, each to one random node with the freshest entries, when not all entries fit into one (about 90 nodes);
    # below that, one, or three while there is something else to tell.  More: fresher; cost: 1.2 KB/s each.  10 keeps 95 % of 1,000
    # entries younger than 5 s.
    fanout: int = 10
    # A node that answers neither us nor those whom we ask to try is suspect: nothing is sent there.  When at least two others say so too,
    # or nobody else is there to say so, it is dead after this long without a sign of life.  A node whose kernel still takes a TCP
    # connection is stalled, not gone: it has 45 s.  Shorter: death is known sooner; cost: a busy node is taken for dead.
    suspect_s: float = 4.0
    # ... and after this long when nobody else suspects it.  Longer: one node with a bad line declares fewer dead; cost: a death that only
    # one has seen is known later.  Twice `suspect_s`: one witness is worth less than three.
    dead_s: float = 8.0
    # Dead nodes are shown for this long and then forgotten.  Longer: more of the past is shown, and a node that comes back is found without
    # multicast; cost: a row each, and hellos to six of them.  An hour is a reboot and a repair.
    forget_s: float = 3600.0

    # -- what this node is worth --------------------------------------------------------------------------------------------------

    # Speed of one of its CPUs relative to the standard CPU, which does 80 rounds a second of the measurement's work (docs/economy.md).
    # 0: measured at the first start after each boot (0.1 s).  Higher: more comes here; cost: what comes runs slower than was thought.
    speed: float = 0.0
    # Number of CPUs that processes here can really use; may be a fraction, as with a CPU quota.  0: as the scheduler and the
    # cgroup say.  Lower: fewer processes at once come here; cost: CPUs that nobody uses.
    cpus: float = 0.0
    # Memory for processes.  0: the cgroup's limit, else the machine's.  Lower: fewer and smaller guests; cost: memory that nobody uses.
    mem_total: int = 0
    # Interval of load samples.  Shorter: a new load is known sooner; cost: a scan of the active processes, about 15 us each.  A sample is
    # exact (run and wait times as the kernel counted them), so more of them buy nothing else, and gossip tells one a second.
    sample_s: float = 1.0

    # -- whom it takes in ---------------------------------------------------------------------------------------------------------

    # Whether guests are accepted at all when the daemon starts; `mosctl block` changes it at run time.
    accept: bool = True
    # Users and groups whose processes may come, as first and last id; every id that a process has or could take on must be allowed.  The
    # default leaves system accounts and `nobody` out.  Wider: more can come; cost: those accounts of this node act for other nodes.
    allow_uids: tuple[int, int] = (1000, 65533)
    allow_gids: tuple[int, int] = (1000, 65533)
    # Whether guests may be root's, and then also any other user's.  Whoever is root on a node of the pool then acts as root here: only
    # where all nodes trust each other.
    allow_root_guests: bool = False
    # Homes whose processes may come: names, ids, addresses or networks ("10.0.0.0/24") of nodes.  Empty: every node of the pool, as all
    # of them have the cluster key.  A node that is listed is still asked for the key; names and ids are what gossip says.
    allow_from: tuple[str, ...] = ()
    # Whether root of another node may block this one, expel its guests, and open it again (`mosctl expel NODE`, mosmon).  What was ordered
    # here is not undone from there, and `allow_from` holds for orders too.  Off: each node is steered at itself only.
    remote_orders: bool = True
    # Guests beyond this many are refused.  More: more can come; cost: a keeper with its helpers takes about 60 MB.  64 of
    # them take 4 GB.
    max_guests: int = 64
    # Memory that all guests together may have here; what would go beyond it is refused when it comes (a guest that grows later is not
    # stopped).  0: all but `mem_reserve`.  More: more can come; cost: less for the processes of this node.
    max_memory: int = 0
    # Free memory that a guest must leave.  More: safer against swapping; cost: fewer guests.  64 MiB are the
    # helpers of one move.
    mem_reserve: int = 64 << 20

    # -- how its load is told -------------------------------------------------------------------------------------------------------

    # MOSIX's stability factor: what an arriving process counts before samples have seen it, and by how much the mosix policy wants another
    # node to be better.  More: calmer; cost: larger imbalance stays.  1.3: a third is more
    # than a sample is wrong by.
    stability: float = 1.30
    # How long past load counts: 1 as in MOSIX (about 2 s for a rise here, 8 s for a fall that others are told), 0 every sample is believed
    # at once, 2 twice the memory.  More: fewer moves, also for bursts of a second; cost: later reactions.  Simulated (docs/economy.md, H):
    # without bursts 0, 1, 4 give mean slowdowns of 2.85, 3.05, 3.43 with 0.89, 0.48, 0.22 moves a job; where own work of the nodes shows
    # bursts, 3.22, 3.20, 3.56 with 1.49, 0.42, 0.13.  So 1 is as good as 0 with less than a third of the moves where there are bursts, and
    # costs 7 % where there are none.
    decay: float = 1.0

    # -- what it sends away by itself -----------------------------------------------------------------------------------------------

    # Which processes the balancer may move: "mosrun" those started by mosrun and their children, "all" every suitable one, "none" none.
    auto: Literal["mosrun", "all", "none"] = "mosrun"
    # Who decides: "economy", or for comparison "mosix", "epvm", "roundrobin"; "none" moves nothing and starts everything at home.  Other
    # distributions add policies by entry points (docs/economy.md).
    policy: str = "economy"
    # Jobs of mosrun and guests share this node's CPUs by age: who has had little goes first (cpu.weight of a cgroup of its own, 4 s / CPU
    # time, at least 0.02 of a new job's).  Halves the mean slowdown of a mix of jobs; the longest take some percent longer.  Never touches
    # a process that is no job.
    age_shares: bool = True
    # Command names (as in ps -o comm) that the balancer never touches, whatever `auto` says.
    never: tuple[str, ...] = ("systemd", "sshd", "sudo", "login", "dbus-daemon", "Xorg", "Xwayland", "gnome-shell", "dockerd")
    # Interval of balancing decisions.  Shorter: bursts spread faster; cost: the price of every pair of candidate and node each time.
    # 1.5 s are one sample and its way through the pool.
    balance_s: float = 1.5
    # A process is left alone until it is this old: most processes die young.  An age predicts the time that is left.
    # Longer: fewer moves of what would have ended anyway; cost: short jobs stay where they were started.
    min_age_s: float = 2.0
    # ... and after each of its moves for this long; after a failed one for ten times as long.  Longer: calmer; cost: slower corrections.
    rest_s: float = 3.0
    # ... and after a move that somebody ordered by hand (migrate without --free) for this long: whoever puts a process somewhere wants it
    # there for a while.  0: not at all.  mosctl lock keeps it for ever.  Longer: the order holds; cost: imbalance that it makes stays.
    hand_hold_s: float = 300.0
    # Hysteresis: a move must save (1 + epsilon) x what it costs the target.
    # More: fewer moves; cost: larger imbalance is left.  Measured: 0.5 is as
    # good as 0.1 with half the moves for jobs started at home; jobs whose node was chosen at the start need 1.0.
    epsilon_home: float = 0.5
    epsilon_placed: float = 1.0
    # Seconds until the helpers of a move stand ready.  More: short processes stay where they are; cost: they wait there.  It and the next
    # four are first guesses: what moves cost is learnt from those that ended.
    setup_s: float = 0.5
    # CPU seconds that the helpers take for a move, at both ends together.  They hold up everything else there.  More: fewer moves away from
    # and to busy nodes; cost: imbalance is left there.
    move_cpu_s: float = 0.3
    # What a move costs beside: the freeze, and the share of a CPU that a running transfer takes at either end.  More: fewer moves; cost:
    # imbalance that would have paid is left.  First guesses as well.
    freeze_s: float = 0.1
    transfer_cpu: float = 0.1
    # Line rate for guessing the time of a transfer.  1 Gbit/s.  Higher: large processes move sooner; cost: moves that last longer than they
    # save.  Too low a value keeps large processes at home.
    bandwidth: float = 125e6
    # Simultaneous transfers of this node, in or out.  More: bursts spread faster; cost: each of them takes longer.  Two keep
    # the line busy during one's freeze.
    transfers: int = 2
    # Jobs that may be on their way here to start (mosrun -b) at once.  More: bursts spread faster; cost: each prepares a cell, half a CPU
    # second.  Eight keep two CPUs busy for two seconds, which is when the next load is told.
    starts: int = 8
    # For tests: agents and keepers stop, fail or die at named points of a move (mig.migration.faults).  Never on a machine that is used.
    faults: bool = False
    # A move that takes longer is abandoned unless the user gave --timeout; before its commit that means: runs where it was.
    # Longer: slow lines can finish; cost: a hopeless move holds a transfer's place.  300 s carry 30 GB at 1 Gbit/s.
    move_timeout_s: float = 300.0

    # -- whose machine it is --------------------------------------------------------------------------------------------------------

    # When the node leaves the pool: "login" while anybody is logged in (ssh too), "console-login" while somebody sits at this machine,
    # "active-user" while somebody who is logged in uses it or local users' own work keeps it busy, "never".  Never is the default because
    # on a cluster people log in to start jobs; a desktop wants "login" or "active-user".  See docs/adaptive-pool.md.
    leave_on: Literal["login", "console-login", "active-user", "never"] = "never"
    # How long after that it is back: "5m", "90s", "1h" after the last logout; with " idle" it is enough that nobody has touched keyboard,
    # mouse or terminal for that long, so that a forgotten session does not keep the machine out for ever.  Shorter: more work for the
    # pool; cost: guests come and go with every pause of the owner's.
    rejoin_after: str = "5m idle"
    # Linger: instead of leaving, take no new guests and keep those that are here at idle priority, until the owner feels them (memory
    # gets short).  More work done; cost: caches and memory are shared with the owner.
    linger: bool = False
    # "active-user": this many busy threads of local users (no guests, no jobs of mosrun) count as somebody at work.
    # Lower: the pool leaves sooner; cost: a cron job counts as an owner.  Half a thread is more than a desktop at rest needs.
    owner_load: float = 0.5
    # Services of PAM whose sessions are nobody's presence.
    ignore_sessions: tuple[str, ...] = ("cron", "crond", "atd", "systemd-user", "sudo", "sudo-i", "runuser", "runuser-l", "polkit-1")
    # Nice value of other nodes' guests as a group against this node's own processes: 0 equal, 10 a ninth, 19 a sixty-eighth of a CPU for
    # which both compete; -1 leaves them alone.  Lower numbers: guests get on beside local work; cost: local users feel them.  Ten is hardly
    # felt, and a guest that starves is moved on by the balancer.
    guest_nice: int = 10

    @classmethod
    def from_map(cls, m: dict[str, Any], *, source: str = "configuration") -> Self:
        """Check types and ranges of a parsed TOML table; raises :class:`BadInput` with every mistake found."""
        hints = typing.get_type_hints(cls)
        wrong: list[str] = []
        values: dict[str, Any] = {}
        for key, value in m.items():
            if key not in hints:
                near = difflib.get_close_matches(key, hints, 1)
                wrong.append(f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
                continue
            try:
                values[key] = _convert(value, hints[key])
            except (TypeError, ValueError) as e:
                wrong.append(f"{key} = {value!r}: {e}")
        c = cls(**values)
        wrong += c.mistakes()
        if wrong:
            raise BadInput(f"{source} is not valid", reasons=wrong)
        return c

    def mistakes(self) -> list[str]:
        """Values that have the right type and make no sense."""
        out: list[str] = []
        if not 0 <= self.id <= 0xFFFF:
            out.append(f"id = {self.id}: must be 1..65535, or 0 to derive it from the address")
        if not 0 < self.port <= 0xFFFF:
            out.append(f"port = {self.port}: must be 1..65535")
        if self.addr and not _is_address(self.addr):
            out.append(f"addr = {self.addr!r}: not an IP address")
        if self.multicast and not (_is_address(self.multicast) and ipaddress.ip_address(self.multicast).is_multicast):
            out.append(f"multicast = {self.multicast!r}: not a multicast address")
        six = self.multicast6
        if six and not (":" in six and _is_address(six) and ipaddress.ip_address(six).is_multicast):
            out.append(f"multicast6 = {self.multicast6!r}: not an IPv6 multicast address")
        for s in self.seeds:
            try:
                split_address(s, self.port)
            except ValueError as e:
                out.append(f"seeds: {e}")
        for f in _POSITIVE:
            if getattr(self, f) <= 0:
                out.append(f"{f} = {getattr(self, f)}: must be greater than 0")
        for f in _NOT_NEGATIVE:
            if getattr(self, f) < 0:
                out.append(f"{f} = {getattr(self, f)}: must not be negative")
        if self.policy not in POLICIES and self.policy not in policies.names():
            near = [f"; did you mean {n!r}?" for n in difflib.get_close_matches(self.policy, policies.names(), 1)]
            out.append(f"policy = {self.policy!r}: there is no such policy; known: {', '.join(policies.names())}{''.join(near)}")
        if self.dead_s <= self.suspect_s:
            out.append(f"dead_s = {self.dead_s}: must be greater than suspect_s = {self.suspect_s}")
        for f in ("allow_uids", "allow_gids"):
            low, high = getattr(self, f)
            if low > high:
                out.append(f"{f} = [{low}, {high}]: first is greater than last")
            elif low <= 0:
                out.append(f"{f} = [{low}, {high}]: begins below 1; root's processes are let in by allow_root_guests")
        try:
            Rejoin.parse(self.rejoin_after)
        except ValueError as e:
            out.append(f"rejoin_after = {e}")
        if not -1 <= self.guest_nice <= 19:
            out.append(f"guest_nice = {self.guest_nice}: must be 0..19, or -1 to leave guests alone")
        return out

    def describe(self) -> str:
        """The effective values as TOML, as ``omdiscd --check-config`` prints them."""
        return "\n".join(f"{f.name} = {_toml(getattr(self, f.name))}" for f in dataclasses.fields(self))


_POSITIVE = (
    "hello_s", "gossip_s", "fanout", "suspect_s", "forget_s", "sample_s", "balance_s", "bandwidth", "transfers", "starts", "move_timeout_s",
    "stability",
)  # fmt: skip
_NOT_NEGATIVE = (
    "speed", "cpus", "mem_total", "max_guests", "max_memory", "mem_reserve",
    "min_age_s", "rest_s", "hand_hold_s", "epsilon_home", "epsilon_placed", "freeze_s",
    "setup_s",
    "move_cpu_s",
    "transfer_cpu", "owner_load", "decay",
)  # fmt: skip


def load(path: Path | None = None) -> Config:
    """Read the file, ``paths.CONFIG`` by default; a missing default file means all defaults, a missing named one is an error."""
    file = path or paths.CONFIG
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        if path is None:
            return Config()
        raise BadInput(f"there is no configuration file {file}") from None
    except OSError as e:
        raise BadInput(f"cannot read {file}: {e.strerror}") from e
    try:
        m = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise BadInput(f"{file} is not TOML: {e}") from e
    return Config.from_map(m, source=str(file))


def split_address(text: str, port: int) -> tuple[str, int]:
    """``ADDR``, ``ADDR:PORT`` or ``[V6]:PORT`` into address and port; raises ``ValueError`` for anything else."""
    host, p = text, port
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if rest:
            p = int(rest.removeprefix(":"))
    elif text.count(":") == 1:
        host, _, rest = text.partition(":")
        p = int(rest)
    if not _is_address(host) or not 0 < p <= 0xFFFF:
        raise ValueError(f"{text!r} is not ADDR or ADDR:PORT")
    return host, p


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _convert(value: Any, kind: Any) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in args:
            raise ValueError("must be one of " + ", ".join(map(repr, args)))
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError("must be a list")
        if args[-1] is Ellipsis:
            return tuple(_convert(v, args[0]) for v in value)
        if len(value) != len(args):
            raise ValueError(f"must have {len(args)} values")
        return tuple(_convert(v, k) for v, k in zip(value, args, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"must be {_NAMES[kind]}")
    return value


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def _toml(v: Any) -> str:
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, tuple):
        return "[" + ", ".join(map(_toml, v)) + "]"
    return '"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(v, str) else repr(v)
