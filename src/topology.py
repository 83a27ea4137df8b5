"""Stages, links and cores as data: what runs, what joins it, and where.

:data:`STAGES` and :data:`LINKS` are the pipeline; :class:`Machine` is the host; :func:`plan` puts
the one on the other.  The planner reads nothing but its arguments, so it is tested for machines
that are not at hand.

Placement
---------
* The first core of the list (the first two from eight on) keeps house: interrupts, the kernel and
  everything that sleeps.  The other cores are hot: one process spins on each, nothing else.
* A core per hot stage when there are enough; with fewer, neighbours of the chain are fused into
  one process, the order path first, because a hop inside a process moves no cache line.
* Two processes never spin on one core: they would starve each other by whole scheduler slices.
  With one core, or ``--oversubscribe``, nobody spins.
"""
from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hftpipe import schema
from hftpipe.errors import ConfigError, UsageError


@dataclass(frozen=True, slots=True)
class Stage:
    """One duty cycle; its index in :data:`STAGES` is its block of the control page."""

    name: str
    hot: bool                   # on the way from tick to order: its own core where there is one
    fatal: bool                 # its death stops the run; others are restarted in place
    doc: str


STAGES = (
    Stage("feed", True, True, "Market data off the socket, normalised."),
    Stage("book", True, True, "Order book per instrument."),
    Stage("signal", True, True, "Features, model or strategy, intents."),
    Stage("risk", True, True, "Every check before an order may leave."),
    Stage("gateway", True, True, "Order state and the requests to the venue."),
    Stage("updates", False, True, "What the venue says about our orders."),
    Stage("ledger", True, True, "Positions and P&L."),
    Stage("store", False, False, "Events into PostgreSQL."),
    Stage("monitor", False, False, "Metrics and health over HTTP."),
    Stage("supervisor", False, True, "Starts, watches and stops the others."),
    Stage("analyst", False, False, "Figures that risk takes from outside."),
    Stage("guardian", False, False, "Cancels at the venue when the run halts, hangs or dies."),
    Stage("journal", False, False, "Events off the store links onto the disk."),
)
INDEX = {stage.name: i for i, stage in enumerate(STAGES)}
CHAIN = tuple(s.name for s in STAGES if s.hot)      # in the order a tick passes them


@dataclass(frozen=True, slots=True)
class Link:
    """A ring: one producer, one consumer."""

    producer: str
    consumer: str               # "store": the journal takes it off the link for the store
    record: str                 # name of a schema record
    capacity: int               # records; power of two

    @property
    def name(self) -> str:
        return f"{self.producer}.{self.consumer}"

    @property
    def size(self) -> int:
        """Bytes of one slot."""
        return schema.BY_NAME[self.record].size


LINKS = (
    Link("feed", "book", "market", 16384),
    Link("book", "signal", "book", 4096),
    Link("book", "risk", "book", 4096),
    Link("book", "ledger", "book", 4096),
    Link("signal", "risk", "intent", 1024),
    Link("risk", "gateway", "order", 1024),
    Link("updates", "gateway", "update", 4096),
    Link("gateway", "signal", "order_event", 4096),
    Link("gateway", "risk", "order_event", 4096),
    Link("gateway", "ledger", "order_event", 4096),
    Link("gateway", "updates", "order_event", 16384),
    Link("ledger", "risk", "position", 4096),
    Link("analyst", "risk", "figure", 4096),
    Link("supervisor", "risk", "figure", 256),
    Link("feed", "store", "stored", 131072),
    Link("book", "store", "stored", 8192),
    Link("signal", "store", "stored_vector", 32768),
    Link("risk", "store", "stored_wide", 32768),
    Link("gateway", "store", "stored_wide", 32768),
    Link("updates", "store", "stored_wide", 16384),
    Link("ledger", "store", "stored_wide", 32768),
    Link("analyst", "store", "stored", 16384),
    Link("supervisor", "store", "stored", 1024),
)

# What a producer looks for before it takes anything, and the credit that is on its way back.
LEAST = {"feed.book": 4096, "feed.store": 4096, "signal.risk": 32,
         "gateway.signal": 8, "gateway.risk": 8, "gateway.ledger": 8, "gateway.updates": 8}
LEAST_STORE = 128


def stream(stage: str) -> int:
    """STREAM_* of the events that *stage* stores: the supervisor's are the operator's."""
    return int(getattr(schema.STREAM, {"supervisor": "OPERATOR"}.get(stage, stage.upper())))


def recorded() -> tuple[str, ...]:
    """Stages that store events."""
    return tuple(link.producer for link in LINKS if link.consumer == "store")


def stored() -> dict[int, schema.Record]:
    """Slot of every store link by the stream of its events."""
    return {stream(link.producer): schema.BY_NAME[link.record] for link in LINKS
            if link.consumer == "store"}


def links(capacity: Mapping[str, int] | None = None,
          where: Callable[[str], str] = lambda name: "") -> tuple[Link, ...]:
    """:data:`LINKS` with *capacity* (by link name) over the defaults.

    *where* gives the place of a configuration key for error messages.
    """
    capacity = capacity or {}
    names = [link.name for link in LINKS]
    for name, count in capacity.items():
        dotted = f"layout.capacity.{name}"
        if name not in names:
            raise ConfigError(f"{where(dotted)}unknown key {dotted}; links are {', '.join(names)}")
        if count < 2 or count & (count - 1):
            raise ConfigError(f"{where(dotted)}{dotted} must be a power of two, was {count}")
    return tuple(replace(link, capacity=capacity.get(link.name, link.capacity)) for link in LINKS)


# ---------------------------------------------------------------- the machine

def parse_list(text: str) -> list[int]:
    """Numbers of a kernel list: ``"0-3,8"``; empty text is the empty list."""
    out: list[int] = []
    for part in text.strip().split(","):
        if part:
            low, _, high = part.partition("-")
            out.extend(range(int(low), int(high or low) + 1))
    return out


def format_list(numbers: Collection[int]) -> str:
    """The shortest kernel list of *numbers*."""
    out: list[str] = []
    ordered = sorted(numbers)
    start = 0
    for i, n in enumerate(ordered):
        if i + 1 == len(ordered) or ordered[i + 1] != n + 1:
            out.append(str(n) if n == ordered[start] else f"{ordered[start]}-{n}")
            start = i + 1
    return ",".join(out)


@dataclass(frozen=True, slots=True)
class Core:
    """One logical processor."""

    index: int
    physical: tuple[int, int]   # (package, core id): equal for hyper-thread siblings
    node: int = 0               # NUMA
    online: bool = True
    allowed: bool = True        # by cpuset and affinity
    isolated: bool = False      # isolcpus: the scheduler puts nothing there on its own


@dataclass(frozen=True)
class Machine:
    """What the planner knows about a host."""

    cores: tuple[Core, ...]

    @classmethod
    def of(cls, count: int, *, threads: int = 1, nodes: int = 1,
           allowed: Iterable[int] | None = None, offline: Iterable[int] = (),
           isolated: Iterable[int] = ()) -> Machine:
        """A regular machine of *count* logical cores.

        Hyper-threads are numbered as Linux does on most hosts: with 2 *threads* of 8 cores,
        core 0 and core 4 are siblings.  Nodes split the physical cores evenly.
        """
        physical = count // threads
        permitted = set(range(count) if allowed is None else allowed)
        gone, alone = set(offline), set(isolated)
        return cls(tuple(Core(
            i, (i % physical * nodes // physical, i % physical), i % physical * nodes // physical,
            i not in gone, i in permitted and i not in gone, i in alone)
            for i in range(count)))

    @classmethod
    def read(cls, root: str | os.PathLike[str] = "/") -> Machine:
        """The host, from ``/sys`` and ``/proc`` below *root*.

        A core counts as allowed when the cgroup's cpuset has it and it is either in this
        process's affinity or isolated: isolcpus takes its cores out of everybody's affinity, and
        they are what one isolates them for.
        """
        top = Path(root)
        system = top / "sys/devices/system"

        def numbers(path: Path) -> list[int]:
            try:
                return parse_list(path.read_text())
            except (OSError, ValueError):
                return []               # not there: older kernel, container, no NUMA

        def integer(path: Path, default: int) -> int:
            try:
                return int(path.read_text())
            except (OSError, ValueError):
                return default          # offline cores have no topology directory

        present = numbers(system / "cpu/present") or numbers(system / "cpu/online")
        online = set(numbers(system / "cpu/online") or present)
        isolated = set(numbers(system / "cpu/isolated"))
        affinity = _affinity(top) or online
        cpuset = _cpuset(top)
        allowed = ((affinity | isolated) & online) & (cpuset or online)
        node_of: dict[int, int] = {}
        for directory in sorted((system / "node").glob("node[0-9]*")):
            for core in numbers(directory / "cpulist"):
                node_of[core] = int(directory.name.removeprefix("node"))
        out = []
        for i in present:
            topology = system / f"cpu/cpu{i}/topology"
            out.append(Core(
                i, (integer(topology / "physical_package_id", 0), integer(topology / "core_id", i)),
                node_of.get(i, 0), i in online, i in allowed, i in isolated))
        if not out:
            raise UsageError(f"{system}/cpu/present: no core found; is this Linux with /sys?")
        return cls(tuple(out))

    def core(self, index: int) -> Core:
        for core in self.cores:
            if core.index == index:
                return core
        raise KeyError(index)

    @property
    def usable(self) -> list[int]:
        """Cores this process may use, ascending."""
        return [c.index for c in self.cores if c.allowed and c.online]


def _affinity(top: Path) -> set[int]:
    try:
        status = (top / "proc/self/status").read_text()
    except OSError:
        return set()
    found = re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.M)
    return set(parse_list(found[1])) if found else set()


def _cpuset(top: Path) -> set[int]:
    """Cores of the nearest cgroup that has a say; empty when none has."""
    try:
        lines = (top / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return set()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":           # cgroup v2
            base = top / "sys/fs/cgroup"
            names: tuple[str, ...] = ("cpuset.cpus.effective",)
        elif "cpuset" in controllers.split(","):
            base = top / "sys/fs/cgroup/cpuset"
            names = ("cpuset.effective_cpus", "cpuset.cpus")
        else:
            continue
        group = base / path.strip("/")
        while True:
            for name in names:
                try:
                    found = set(parse_list((group / name).read_text()))
                except (OSError, ValueError):
                    continue            # this level does not limit; its parent may
                if found:
                    return found
            if group == base:
                break
            group = group.parent
    return set()


def parse_cores(text: str, machine: Machine) -> list[int]:
    """Cores of ``--cores``, in the order given.

    ``"auto"`` is all that are usable, isolated ones last, so that none of them keeps house.

    Raises
    ------
    UsageError
        If the list is malformed or names a core that does not exist, is offline, stands twice
        or is not allowed.
    """
    if text.strip() == "auto":
        return sorted(machine.usable, key=lambda i: machine.core(i).isolated)
    out: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if not match:
            raise UsageError(f'cores must be a list such as "0-7" or "1,3-5", was {text!r}')
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low:
            raise UsageError(f"cores must ascend within a range, was {part.strip()}")
        out.extend(range(low, high + 1))
    by_index = {core.index: core for core in machine.cores}
    for index in out:
        if index not in by_index:
            raise UsageError(f"core {index} does not exist; this machine has "
                             f"{format_list(list(by_index))}")
    for n, index in enumerate(out):
        if index in out[:n]:
            raise UsageError(f"core {index} stands twice in {text!r}")
        if not by_index[index].online:
            raise UsageError(f"core {index} is offline; online are "
                             f"{format_list([c.index for c in machine.cores if c.online])}")
        if not by_index[index].allowed:
            raise UsageError(f"core {index} is not allowed by this process's cpuset or affinity; "
                             f"allowed are {format_list(machine.usable)}")
    return out


# ---------------------------------------------------------------- the plan

SPIN, YIELD, SLEEP = "spin", "yield", "sleep"


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a run."""

    name: str
    stages: tuple[str, ...]     # in the order one pass of its loop visits them
    affinity: tuple[int, ...]   # cores it may use; one = pinned
    wait: str                   # SPIN, YIELD or SLEEP: what it does without work
    hot: bool
    fatal: bool                 # its death stops the run

    @property
    def core(self) -> int | None:
        """The core it is pinned to, or None when it floats."""
        return self.affinity[0] if len(self.affinity) == 1 else None

    @property
    def indices(self) -> tuple[int, ...]:
        """Its blocks of the control page."""
        return tuple(INDEX[stage] for stage in self.stages)


@dataclass(frozen=True)
class Plan:
    """Processes on cores.  *processes* stand in the order of :data:`STAGES`."""

    processes: tuple[Process, ...]
    cores: tuple[int, ...]
    links: tuple[Link, ...]
    oversubscribed: bool
    warnings: tuple[str, ...] = ()

    def process_of(self, stage: str) -> Process:
        for process in self.processes:
            if stage in process.stages:
                return process
        raise KeyError(stage)

    @property
    def start_order(self) -> tuple[Process, ...]:
        """Consumers before their producers; the supervisor, which starts them, left out."""
        return start_order(self.processes, self.links)

    def memory(self) -> dict[str, int]:
        """Bytes of shared memory by segment, whole pages, control page and board included.

        The board's are those of a small table: 64 bytes for an instrument do not count.
        """
        from hftpipe import _board, _control
        from hftpipe._ring import footprint
        sizes = {link.name: footprint(schema.BY_NAME[link.record], link.capacity)
                 for link in self.links}
        sizes["control"], sizes["board"] = _control.SIZE, _board.size(1)
        return {name: -(-size // 4096) * 4096 for name, size in sizes.items()}


def start_order(processes: Sequence[Process], joined: Iterable[Link]) -> tuple[Process, ...]:
    """*processes* so that each stands after the consumers of its links where no cycle forbids it.

    The cycles are those of answers (gateway to signal and risk, ledger to risk); walking down
    from the sources of the chain cuts them where the answer turns back.
    """
    owner = {stage: p for p in processes for stage in p.stages if stage != "supervisor"}
    joined = list(joined)
    out: list[Process] = []
    seen: set[str] = set()

    def visit(process: Process) -> None:
        if process.name in seen:
            return
        seen.add(process.name)
        for link in joined:
            if link.producer in process.stages and link.consumer in owner:
                visit(owner[link.consumer])
        out.append(process)

    for root in ("guardian", "monitor", "journal", "store", "feed", "updates", *owner):
        if root in owner:
            visit(owner[root])
    # the sources last, whatever else they are fused with
    return tuple(sorted(out, key=lambda p: "feed" in p.stages))


# Which neighbours share a process when there are so many hot cores.
GROUPS = {
    6: ("feed", "book", "signal", "risk", "gateway", "ledger"),
    5: ("feed", "book", "signal", "risk gateway", "ledger"),
    4: ("feed", "book signal", "risk gateway", "ledger"),
    3: ("feed", "book signal risk gateway", "ledger"),
    2: ("feed", "book signal risk gateway ledger"),
    1: ("book signal risk gateway ledger",),
}
HOUSE_FROM = 8                  # cores from which two keep house


def _hot_cores(machine: Machine, candidates: Sequence[int], house: Collection[int],
               count: int) -> list[int]:
    """The *count* best of *candidates* for spinning, in the order given.

    Best is: one NUMA node, one hyper-thread of each physical core and none of the
    housekeepers', isolated.
    """
    busy = {machine.core(i).physical for i in house}

    def rank(node: int) -> list[int]:
        """Candidates, those of *node* and of unshared physical cores first."""
        taken = set(busy)
        first: list[int] = []
        shared: list[int] = []
        here = sorted((machine.core(i) for i in candidates if machine.core(i).node == node),
                      key=lambda c: not c.isolated)
        for core in here:
            (shared if core.physical in taken else first).append(core.index)
            taken.add(core.physical)
        return first + shared + [i for i in candidates if machine.core(i).node != node]

    def badness(chosen: Sequence[int]) -> tuple[int, int, int]:
        cores = [machine.core(i) for i in chosen]
        used = [c.physical for c in cores]
        return (len({c.node for c in cores}),
                sum(used.count(p) > 1 or p in busy for p in used),
                sum(not c.isolated for c in cores))

    nodes = list(dict.fromkeys(machine.core(i).node for i in candidates))
    best = min((rank(node)[:count] for node in nodes), key=badness)
    return [i for i in candidates if i in best]


def plan(machine: Machine, cores: Sequence[int], *, oversubscribe: bool = False,
         spin: bool = True, fuse_feed: bool = False, feed_in_loop: bool = True,
         pin: Mapping[str, int] | None = None,
         capacity: Mapping[str, int] | None = None,
         where: Callable[[str], str] = lambda name: "") -> Plan:
    """Put the stages on *cores*.

    Parameters
    ----------
    machine : Machine
    cores : sequence of int
        As :func:`parse_cores` returns them; the first keep house.
    oversubscribe : bool
        One process per stage, all of them floating over *cores*, waiting by yielding.
    spin : bool
        Whether hot processes that have a core of their own spin; otherwise they sleep.
    fuse_feed : bool
        Receive market data inside the loop of the fused process, so that it needs no own core.
    feed_in_loop : bool
        Whether a loop can receive the data stream; otherwise the feed's own process sleeps.
    pin : mapping of process or stage to core
        Over the planner's choice.
    capacity : mapping of link name to records
        Over the defaults.
    where : callable
        Place of a configuration key, for error messages.

    Raises
    ------
    UsageError, ConfigError
        If there is no core, or a pin names what is not there or what another one spins on.
    """
    if not cores:
        raise UsageError("cores must name at least one, found none")
    pin = dict(pin or {})
    joined = links(capacity, where)
    for link in joined:
        least = LEAST.get(link.name, LEAST_STORE if link.consumer == "store" else 2)
        if link.capacity < least:
            dotted = f"layout.capacity.{link.name}"
            raise ConfigError(f"{where(dotted)}{dotted} must be at least {least}, else its "
                              f"producer never has room, was {link.capacity}")
    count = len(cores)
    house = tuple(cores[:2] if count >= HOUSE_FROM else cores[:1])
    cold_wait = SLEEP

    if oversubscribe:
        groups: tuple[str, ...] = CHAIN
    elif count == 1:
        groups = GROUPS[1]
    else:
        groups = GROUPS[min(count - len(house), 6)]
        if groups == GROUPS[1] and "feed" in pin and not fuse_feed:
            groups = ("feed", *groups)
    if fuse_feed and not oversubscribe:
        groups = tuple("feed " + g if g.startswith("book") else g for g in groups if g != "feed")

    hot: list[tuple[str, tuple[str, ...]]] = []
    for group in groups:
        stages = tuple(group.split())
        alone = len(stages) == 1
        hot.append((stages[0] if alone else "hot" if "risk" in stages and "book" in stages
                    else "_".join(stages), stages))
    cold = [(s.name, (s.name,)) for s in STAGES if not s.hot]
    if "feed" not in {stage for _, stages in hot for stage in stages}:
        cold.insert(0, ("feed", ("feed",)))

    pins = _pins(pin, [*hot, *cold], cores, where)
    dedicated = not oversubscribe and count > 1
    chosen: dict[str, int] = {}
    if dedicated:
        for name, _ in hot:
            if name in pins:
                rival = next((n for n, c in chosen.items() if c == pins[name]), None)
                if rival:
                    raise UsageError(f"{where('layout.pin.' + name)}layout.pin.{name}: core "
                                     f"{pins[name]} is taken by {rival}; two processes cannot "
                                     "both have it")
                chosen[name] = pins[name]
        free = [c for c in cores if c not in house and c not in chosen.values()]
        wanted = [name for name, _ in hot if name not in chosen]
        if len(free) < len(wanted):
            free = [c for c in cores if c not in chosen.values()]
        if len(wanted) == 1 and len(free) <= len(cores) and count < HOUSE_FROM:
            picked = [_hot_cores(machine, list(reversed(free)), house, 1)[0]]
        else:
            picked = _hot_cores(machine, free, house, len(wanted)) if wanted else []
        chosen.update(zip(wanted, picked, strict=True))

    by_stage = {s.name: s for s in STAGES}
    floor = tuple(c for c in house if c not in chosen.values()) or house
    built: list[Process] = []
    for name, stages in hot:
        if dedicated:
            affinity: tuple[int, ...] = (chosen[name],)
            wait = SPIN if spin else SLEEP
        elif oversubscribe:
            affinity = (pins[name],) if name in pins else tuple(cores)
            wait = YIELD
        else:
            affinity, wait = (cores[0],), SLEEP
        if stages == ("feed",) and not feed_in_loop:
            wait = SLEEP
        built.append(Process(name, stages, affinity, wait, True, True))
    for name, stages in cold:
        affinity = (pins[name],) if name in pins else (tuple(cores) if oversubscribe else floor)
        wait = YIELD if oversubscribe and name in CHAIN else cold_wait
        built.append(Process(name, stages, affinity, wait, name in CHAIN,
                             any(by_stage[s].fatal for s in stages)))
    built.sort(key=lambda p: INDEX[p.stages[0]])
    made = Plan(tuple(built), tuple(cores), joined, oversubscribe)
    return replace(made, warnings=tuple(_warnings(machine, made, house)))


def _pins(pin: Mapping[str, int], processes: Sequence[tuple[str, tuple[str, ...]]],
          cores: Sequence[int], where: Callable[[str], str]) -> dict[str, int]:
    """Process to core; a stage's name pins the process it lives in."""
    out: dict[str, int] = {}
    names = sorted({n for n, _ in processes} | set(INDEX))
    for name, core in pin.items():
        dotted = f"layout.pin.{name}"
        if name not in names:
            raise ConfigError(f"{where(dotted)}unknown key {dotted}; processes and stages are "
                              f"{', '.join(names)}")
        if core not in cores:
            raise ConfigError(f"{where(dotted)}{dotted} must be one of cores "
                              f"{format_list(cores)}, was {core}")
        process = next(n for n, stages in processes if name == n or name in stages)
        if out.get(process, core) != core:
            raise ConfigError(f"{where(dotted)}{dotted}: {process} is one process here and "
                              f"already on core {out[process]}, was {core}")
        out[process] = core
    return out


def _warnings(machine: Machine, made: Plan, house: Sequence[int]) -> Iterable[str]:
    spinning = [(p, machine.core(p.affinity[0])) for p in made.processes if p.wait == SPIN]
    for n, (process, core) in enumerate(spinning):
        for other, rival in spinning[n + 1:]:
            if core.physical == rival.physical:
                yield (f"{process.name} on core {core.index} and {other.name} on core "
                       f"{rival.index} are hyper-threads of one core: each slows the other")
        for index in house:
            sibling = machine.core(index)
            if sibling.physical == core.physical and sibling.index != core.index:
                yield (f"{process.name} on core {core.index} shares a physical core with "
                       f"housekeeping core {index}")
            elif sibling.index == core.index:
                yield f"{process.name} spins on core {core.index}, which also keeps house"
    crossing = []
    for link in made.links:
        ends = [machine.core(p.affinity[0]) for p in
                (made.process_of(link.producer), made.process_of(link.consumer))
                if p.wait == SPIN]
        if len(ends) == 2 and ends[0].node != ends[1].node:
            crossing.append(f"{link.name} ({ends[0].node} to {ends[1].node})")
    if crossing:
        yield "links cross NUMA nodes: " + ", ".join(crossing)
    exposed = [core.index for _, core in spinning if not core.isolated]
    if exposed:
        yield (f"cores {format_list(exposed)} are not isolated (isolcpus): other work may "
               "interrupt what spins there")
    if made.oversubscribed:
        busy = sum(p.wait == YIELD for p in made.processes)
        if busy > len(made.cores):
            yield (f"{busy} hot processes share {len(made.cores)} "
                   f"core{'s' * (len(made.cores) > 1)}: latencies are those of the scheduler")
    idle = [c for c in made.cores if not any(c in p.affinity for p in made.processes)]
    if idle:
        yield f"cores {format_list(idle)} are not used"
