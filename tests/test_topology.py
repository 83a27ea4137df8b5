"""The planner puts every stage on a core that exists, one spinner per core, on any machine."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe.errors import ConfigError, UsageError
from hftpipe.topology import (
    CHAIN,
    INDEX,
    LINKS,
    STAGES,
    Machine,
    format_list,
    links,
    parse_cores,
    parse_list,
    plan,
)


def table(made):
    return {p.name: (p.stages, p.affinity, p.wait) for p in made.processes}


def auto(machine, **options):
    return plan(machine, parse_cores("auto", machine), **options)


# ---------------------------------------------------------------- stages and links

def test_links_join_stages_once_and_every_producer_has_a_store_link():
    names = [link.name for link in LINKS]
    assert len(set(names)) == len(names)
    for link in LINKS:
        assert link.producer in INDEX and link.consumer in INDEX
        assert schema.BY_NAME[link.record].linked
        assert link.capacity & (link.capacity - 1) == 0
    producers = {link.producer for link in LINKS}
    assert {link.producer for link in LINKS if link.consumer == "store"} == producers
    assert [s.name for s in STAGES][:10] == [
        "feed", "book", "signal", "risk", "gateway", "updates", "ledger", "store", "monitor",
        "supervisor"]


def test_capacity_goes_over_the_default_and_unknown_links_are_named():
    assert {k.name: k.capacity for k in links({"feed.book": 64})}["feed.book"] == 64
    with pytest.raises(ConfigError, match=r"^f:1: unknown key layout.capacity.feed.bok; links are"):
        links({"feed.bok": 64}, lambda name: "f:1: ")
    with pytest.raises(ConfigError, match="power of two, was 65"):
        links({"feed.book": 65})


@pytest.mark.parametrize(("name", "count", "least"), [
    ("feed.book", 2048, 4096), ("signal.risk", 16, 32), ("gateway.store", 64, 128)])
def test_a_link_whose_producer_would_never_have_room_is_refused(name, count, least):
    """The run came up, and stood still for ever or kept its gate closed."""
    message = rf"^f:1: layout.capacity.{name} must be at least {least}"
    with pytest.raises(ConfigError, match=message):
        plan(Machine.of(2), [0, 1], capacity={name: count}, where=lambda key: "f:1: ")
    made = plan(Machine.of(2), [0, 1], capacity={name: least})
    assert {k.name: k.capacity for k in made.links}[name] == least


# ---------------------------------------------------------------- core lists

@given(st.sets(st.integers(0, 300)))
def test_kernel_lists_round_trip(numbers):
    assert set(parse_list(format_list(numbers))) == numbers


def test_core_lists_keep_their_order():
    m = Machine.of(8)
    assert parse_cores("0-7", m) == list(range(8))
    assert parse_cores("7,1,3-5", m) == [7, 1, 3, 4, 5]
    assert parse_cores(" 1 , 2-3 ", m) == [1, 2, 3]


@pytest.mark.parametrize(("text", "message"), [
    ("", 'must be a list such as "0-7" or "1,3-5", was \'\''),
    ("1-", "must be a list"), ("a", "must be a list"), ("1,,2", "must be a list"),
    ("-1", "must be a list"), ("1.5", "must be a list"), ("0-99999999", "must be a list"),
    ("3-1", "must ascend within a range, was 3-1"),
    ("0-9", "core 8 does not exist; this machine has 0-7"),
    ("0-2,2", "core 2 stands twice in '0-2,2'"),
    ("6", "core 6 is offline; online are 0-5,7"),
    ("4", "core 4 is not allowed by this process's cpuset or affinity; allowed are 0-3"),
])
def test_bad_core_lists_say_what_was_wanted_and_found(text, message):
    m = Machine.of(8, allowed=range(4), offline=[6])
    with pytest.raises(UsageError) as e:
        parse_cores(text, m)
    assert message in str(e.value)
    assert e.value.exit_code == 2


def test_auto_leaves_isolated_cores_to_what_spins():
    m = Machine.of(2, isolated=[0])
    assert parse_cores("auto", m) == [1, 0]
    assert table(auto(m))["hot"][1:] == ((0,), "spin")


# ---------------------------------------------------------------- the plan

def test_one_core_fuses_and_nobody_spins():
    made = auto(Machine.of(1))
    assert table(made)["hot"] == (("book", "signal", "risk", "gateway", "ledger"), (0,), "sleep")
    assert {p.wait for p in made.processes} == {"sleep"}
    assert {p.affinity for p in made.processes} == {(0,)}


def test_two_cores_have_exactly_one_spinner_on_the_last():
    made = auto(Machine.of(2))
    assert [p.name for p in made.processes if p.wait == "spin"] == ["hot"]
    assert table(made)["hot"][1] == (1,)
    assert {p.affinity for p in made.processes if p.name != "hot"} == {(0,)}
    assert table(made)["feed"] == (("feed",), (0,), "sleep")


def test_two_cores_with_the_feed_received_in_the_loop():
    made = auto(Machine.of(2), fuse_feed=True)
    assert table(made)["hot"][0] == CHAIN
    assert "feed" not in table(made)


def test_eight_cores_give_each_hot_stage_its_own():
    made = auto(Machine.of(8))
    assert {n: c for n, (_, c, w) in table(made).items() if w == "spin"} == {
        "feed": (2,), "book": (3,), "signal": (4,), "risk": (5,), "gateway": (6,), "ledger": (7,)}
    assert {n for n, (_, c, w) in table(made).items() if (c, w) == ((0, 1), "sleep")} == {
        "updates", "store", "monitor", "supervisor", "analyst", "guardian", "journal"}


def test_a_feed_that_no_loop_can_receive_sleeps_on_its_core():
    for options in ({}, {"oversubscribe": True}):
        made = table(auto(Machine.of(8), feed_in_loop=False, **options))
        assert made["feed"][2] == "sleep" and made["book"][2] != "sleep"


@pytest.mark.parametrize("count", range(1, 65))
@pytest.mark.parametrize("fuse_feed", [False, True])
@pytest.mark.parametrize("spin", [False, True])
def test_every_stage_runs_once_and_no_core_has_two_spinners(count, fuse_feed, spin):
    made = auto(Machine.of(count), fuse_feed=fuse_feed, spin=spin)
    assert sorted(s for p in made.processes for s in p.stages) == sorted(INDEX)
    spinners = [p.core for p in made.processes if p.wait == "spin"]
    assert None not in spinners and len(set(spinners)) == len(spinners)
    assert bool(spinners) == (spin and count > 1)
    assert not set(spinners) & {c for p in made.processes if p.wait != "spin" for c in p.affinity}
    assert made.processes == tuple(sorted(made.processes, key=lambda p: p.indices[0]))


def test_sixty_four_cores_use_one_node_and_one_thread_of_each_core():
    m = Machine.of(64, threads=2, nodes=2)
    made = auto(m)
    hot = [m.core(p.core) for p in made.processes if p.wait == "spin"]
    assert len(hot) == 6
    assert len({c.node for c in hot}) == 1
    assert len({c.physical for c in hot}) == 6
    assert not [w for w in made.warnings if "hyper-threads" in w or "NUMA" in w]


def test_isolated_cores_are_preferred_for_what_spins():
    m = Machine.of(64, threads=2, nodes=2, isolated=range(20, 30))
    hot = [p.core for p in auto(m).processes if p.wait == "spin"]
    assert set(hot) <= set(range(20, 30))
    assert not [w for w in auto(m).warnings if "isolated" in w]


def test_hyper_threads_that_must_be_shared_are_reported():
    m = Machine.of(8, threads=2)                # four physical cores: 2-7 hold two pairs
    warnings = "\n".join(auto(m).warnings)
    assert "hyper-threads of one core" in warnings
    assert "shares a physical core with housekeeping core 0" in warnings
    assert "hyper-threads" not in "\n".join(auto(Machine.of(16, threads=2)).warnings)


def test_numa_crossing_is_reported_with_its_links():
    m = Machine.of(8, nodes=2)
    made = plan(m, [0, 1, 2, 3, 4, 5, 6, 7])
    assert any("NUMA" in w and "book.signal" in w for w in made.warnings)
    assert not any("NUMA" in w for w in auto(Machine.of(16, nodes=2)).warnings)


def test_cpuset_limits_the_plan():
    m = Machine.of(64, allowed=[3, 9])
    made = auto(m)
    assert made.cores == (3, 9)
    assert table(made)["hot"][1] == (9,)
    assert {c for p in made.processes for c in p.affinity} == {3, 9}


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_oversubscribe_is_the_whole_topology_with_yielding_waits(count):
    made = auto(Machine.of(count), oversubscribe=True)
    assert {p.name for p in made.processes} == {s.name for s in STAGES}
    assert {p.wait for p in made.processes if p.hot} == {"yield"}
    assert {p.affinity for p in made.processes} == {tuple(range(count))}


def test_not_isolated_and_unused_cores_are_reported():
    assert any("cores 2-7 are not isolated" in w for w in auto(Machine.of(8)).warnings)
    assert "cores 8-15 are not used" in auto(Machine.of(16)).warnings


def test_no_core_is_an_error():
    with pytest.raises(UsageError, match="at least one"):
        plan(Machine.of(2), [])


# ---------------------------------------------------------------- pins

def test_pins_go_over_the_planners_choice():
    made = auto(Machine.of(8), pin={"risk": 2, "feed": 7, "store": 1})
    assert table(made)["risk"][1] == (2,)
    assert table(made)["feed"][1] == (7,)
    assert table(made)["store"][1:] == ((1,), "sleep")
    spinners = [p.core for p in made.processes if p.wait == "spin"]
    assert sorted(spinners) == list(range(2, 8))


def test_a_stages_pin_moves_the_process_it_lives_in():
    assert table(auto(Machine.of(2), pin={"risk": 0}))["hot"][1] == (0,)


@pytest.mark.parametrize(("pin", "message"), [
    ({"risky": 1}, "f:9: unknown key layout.pin.risky"),
    ({"risk": 12}, "f:9: layout.pin.risk must be one of cores 0-7, was 12"),
    ({"risk": 3, "book": 3}, "f:9: layout.pin.risk: core 3 is taken by book"),
])
def test_bad_pins_are_refused(pin, message):
    with pytest.raises((ConfigError, UsageError)) as e:
        auto(Machine.of(8), pin=pin, where=lambda name: "f:9: ")
    assert str(e.value).startswith(message)


def test_pins_of_fused_stages_must_agree():
    with pytest.raises(ConfigError, match="hot is one process here and already on core 1"):
        auto(Machine.of(2), pin={"book": 1, "risk": 0})


# ---------------------------------------------------------------- order and memory

@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 64])
def test_consumers_start_before_producers(count):
    for options in ({}, {"oversubscribe": True}, {"fuse_feed": True}):
        made = auto(Machine.of(count), **options)
        order = [p.name for p in made.start_order]
        assert sorted(order) == sorted(p.name for p in made.processes if p.name != "supervisor")
        at = {stage: order.index(p.name) for p in made.start_order for stage in p.stages}
        chain = [*CHAIN[:5], "store"]
        for link in LINKS:
            if link.producer == "supervisor":   # it starts the others, and speaks when they run
                continue
            forward = link.consumer == "store" or (
                link.producer in chain and link.consumer in chain
                and chain.index(link.producer) < chain.index(link.consumer))
            if forward:
                assert at[link.consumer] <= at[link.producer], link.name
        assert "feed" in made.start_order[-1].stages


def test_memory_is_what_the_rings_take():
    made = auto(Machine.of(2), capacity={"feed.store": 4096})
    memory = made.memory()
    assert set(memory) == {link.name for link in LINKS} | {"control", "board"}
    assert memory["feed.store"] == 129 * 4096
    assert memory["feed.book"] >= 16384 * 64
    assert all(size % 4096 == 0 for size in memory.values())


# ---------------------------------------------------------------- reading the host

def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def host(root, *, present="0-7", online="0-7", isolated="", affinity="0-7", siblings=4):
    cpu = "sys/devices/system/cpu"
    write(root, f"{cpu}/present", present + "\n")
    write(root, f"{cpu}/online", online + "\n")
    write(root, f"{cpu}/isolated", isolated + "\n")
    for i in parse_list(online):
        write(root, f"{cpu}/cpu{i}/topology/physical_package_id", "0\n")
        write(root, f"{cpu}/cpu{i}/topology/core_id", f"{i % siblings}\n")
    write(root, "sys/devices/system/node/node0/cpulist", "0-3\n")
    write(root, "sys/devices/system/node/node1/cpulist", "4-7\n")
    write(root, "proc/self/status", f"Name:\tx\nCpus_allowed_list:\t{affinity}\n")
    write(root, "proc/self/cgroup", "0::/user.slice/one\n")
    return root


def test_a_host_is_read_from_sys_and_proc(tmp_path):
    m = Machine.read(host(tmp_path, online="0-6"))
    assert [c.index for c in m.cores] == list(range(8))
    assert not m.core(7).online and not m.core(7).allowed
    assert m.core(1).physical == m.core(5).physical
    assert [c.node for c in m.cores] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert m.usable == list(range(7))


def test_affinity_and_cpuset_limit_what_is_usable(tmp_path):
    root = host(tmp_path, affinity="0-5")
    write(root, "sys/fs/cgroup/user.slice/cpuset.cpus.effective", "2-7\n")
    assert Machine.read(root).usable == [2, 3, 4, 5]
    write(root, "sys/fs/cgroup/user.slice/one/cpuset.cpus.effective", "3\n")
    assert Machine.read(root).usable == [3]


def test_version_1_cpusets_are_understood(tmp_path):
    root = host(tmp_path)
    write(root, "proc/self/cgroup", "7:cpu,cpuset:/a\n1:name=systemd:/b\n")
    write(root, "sys/fs/cgroup/cpuset/a/cpuset.cpus", "1,2\n")
    assert Machine.read(root).usable == [1, 2]


def test_isolated_cores_count_although_affinity_lacks_them(tmp_path):
    m = Machine.read(host(tmp_path, affinity="0-3", isolated="4-7"))
    assert m.usable == list(range(8))
    assert [c.index for c in m.cores if c.isolated] == [4, 5, 6, 7]


def test_this_host_can_be_read_and_planned():
    m = Machine.read()
    assert m.usable
    made = auto(m)
    assert set(made.cores) == set(m.usable)


def test_no_sys_is_a_clear_error(tmp_path):
    with pytest.raises(UsageError, match="no core found"):
        Machine.read(tmp_path)
