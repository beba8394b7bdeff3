"""The simulation: what queueing theory knows of policies comes out, and nothing gets lost in it."""

import math
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.balancing.policies import POLICIES, policy
from pyproxy.errors import SettingsError
from pyproxy.lab.simulation import Fault, Result, Scenario, Server, Simulation
from pyproxy.lab.workload import Job, Service, drawn, read_log, replayed, zipf

ONE = Service("exponential", 1.0)
THEORY = 0.03  # how far a result may be from it


def poisson(
    targets: int,
    load: float,
    requests: int,
    name: str | dict[str, object],
    service: Service = ONE,
    at_once: int = 1,
    warm_up: float = 0.0,
    keys: int = 1000,
    **more: object,
) -> Result:
    """Targets whose requests take 1 s on the average."""
    scenario = Scenario(
        targets=targets,
        service_mean=1.0,
        jobs=lambda: drawn(load * targets * at_once, requests, service, keys, 0.0, 1),
        at_once=at_once,
        warm_up=warm_up,
        timeout=1e9,
        **more,  # type: ignore[arg-type]
    )
    return Simulation(scenario, policy(name)).run()


def mean(result: Result) -> float:
    assert result.mean is not None
    return result.mean


def quantile(result: Result, share: float) -> float:
    found = result.quantile(share)
    assert found is not None
    return found


def close(found: float, expected: float) -> bool:
    return abs(found / expected - 1) < THEORY


# What theory says


@pytest.fixture(scope="module")
def at_random() -> Result:
    """As many queues of the kind M/M/1 as there are targets."""
    return poisson(100, 0.8, 200_000, "random", warm_up=100)


def test_random_choices_make_each_target_an_mm1_queue(at_random: Result) -> None:
    assert close(mean(at_random), 1 / (1 - 0.8))
    for share in (0.5, 0.9, 0.99):
        assert close(quantile(at_random, share), -math.log(1 - share) / (1 - 0.8))


def test_one_of_two_random_targets_is_better_by_the_known_factor(at_random: Result) -> None:
    """Mitzenmacher: with d choices the mean is the sum of load ** ((d ** i - d) / (d - 1))."""
    result = poisson(100, 0.8, 80_000, "power_of_two_choices", warm_up=50)
    known = sum(0.8 ** (2**i - 2) for i in range(1, 12))
    assert close(mean(result), known)
    assert close(mean(at_random) / mean(result), (1 / (1 - 0.8)) / known)
    assert max(result.peaks) < max(at_random.peaks) / 3


def test_constant_service_times_halve_the_wait() -> None:
    """Pollaczek and Khinchine."""
    result = poisson(20, 0.7, 100_000, "random", Service("constant", 1.0), warm_up=20)
    assert close(mean(result), 1 + 0.7 / (2 * (1 - 0.7)))


def test_a_target_that_serves_several_at_once_is_an_mmc_queue() -> None:
    """Erlang's C."""
    load, at_once = 0.7, 4
    offered = load * at_once
    terms = [offered**k / math.factorial(k) for k in range(at_once + 1)]
    waits = terms[-1] / (1 - load) / (sum(terms[:-1]) + terms[-1] / (1 - load))
    result = poisson(1, load, 120_000, "least_connections", at_once=at_once)
    assert close(mean(result), 1 + waits / (at_once * (1 - load)))


def shortest_of_two(load: float, most: int = 40) -> float:
    """The mean time at two targets, of whom each request goes to the one with fewer: from the
    stationary distribution of the numbers at both, up to ``most``."""
    arriving, serving = 2 * load, 1.0
    states = [(long, short) for long in range(most + 1) for short in range(long + 1)]
    flows: dict[tuple[int, int], list[tuple[tuple[int, int], float]]] = defaultdict(list)
    leaving: dict[tuple[int, int], float] = defaultdict(float)
    for long, short in states:
        moves = [((long, short + 1), arriving)]
        if short:
            moves.append(((long, short - 1), serving))
        if long:
            moves.append(((long - 1, short), serving))
        for (one, other), rate in moves:
            there = (max(one, other), min(one, other))
            if there[0] <= most:
                flows[there].append(((long, short), rate))
                leaving[long, short] += rate
    share = {state: 0.3 ** sum(state) for state in states}
    for _ in range(250):
        for state in states:
            share[state] = sum(share[a] * rate for a, rate in flows[state]) / leaving[state]
    total = sum(share.values())
    return sum((a + b) * part for (a, b), part in share.items()) / total / arriving


def test_least_connections_joins_the_shorter_of_two_queues() -> None:
    result = poisson(2, 0.7, 100_000, "least_connections")
    assert close(mean(result), shortest_of_two(0.7))


def test_turns_make_arrivals_more_even_than_chance() -> None:
    """Each of many targets that take turns gets a request at nearly constant intervals: D/M/1,
    whose mean is 1 / (1 - x) with x = exp(-(1 - x) / load)."""
    x = 0.5
    for _ in range(200):
        x = math.exp(-(1 - x) / 0.7)
    result = poisson(100, 0.7, 60_000, "hash_ring", warm_up=30)
    assert close(mean(result), 1 / (1 - x))


@pytest.mark.parametrize("name", ["consistent_hash", "rendezvous_hash", "ip_hash"])
def test_the_death_of_one_of_n_targets_moves_only_its_keys(name: str) -> None:
    def owners(*faults: Fault) -> dict[str, int]:
        """Who serves which of 2,000 keys in the end."""
        jobs = [
            Job(at / 10, 0.01, f"10.0.{at >> 8}.{at & 255}", "/", None, "GET") for at in range(2000)
        ]
        simulation = Simulation(
            Scenario(20, 0.01, jobs=lambda: iter(jobs), faults=faults), policy(name)
        )
        simulation.run()
        assert {one.state for one in jobs} == {200}
        return {one.address: one.target.port for one in jobs if one.target}

    before, after = owners(), owners(Fault("down", 3, 0.0))
    moved = [key for key, owner in before.items() if after[key] != owner]
    assert {before[key] for key in moved} == {3}
    assert 0.7 < len(moved) / (2000 / 20) < 1.3, "as even as the points are"
    assert len({after[key] for key in moved}) > 5, "they spread"


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("consistent_hash", 0.03, 0.08), ("rendezvous_hash", 0.04, 0.06), ("ip_hash", 0.9, 1.0)],
)
def test_a_shorter_list_moves_one_part_of_the_keys_or_nearly_all(
    name: str, least: float, most: float
) -> None:
    requests, keys = 20_000, 500
    result = poisson(20, 0.5, requests, name, keys=keys, removed=((3, requests / 20),))
    assert least < result.moved / keys < most, "1 of 20 is 0.05"


# What happens to targets


def test_a_dead_target_is_evicted_and_comes_back_and_no_request_is_lost() -> None:
    fault = Fault("down", 2, 100, 200)
    result = poisson(10, 0.5, 2_000, "hash_ring", faults=(fault,))
    assert (result.answered, result.lost) == (2_000, 0)
    assert (result.evictions, result.restored) == (1, 1)
    assert 1 <= result.retries <= 10
    assert result.served[2] < min(result.served[:2] + result.served[3:])


def test_when_all_are_dead_requests_are_lost_until_one_answers() -> None:
    faults = tuple(Fault("down", at, 100, 130) for at in range(3))
    result = poisson(3, 0.5, 1_000, "least_connections", faults=faults, sleeping=60.0)
    assert 20 < result.lost < 90, "30 s of 1.5 requests a second"
    assert result.answered + result.lost == 1_000
    assert result.restored == 3, "they are probed more often than every minute"


def test_a_post_that_a_target_has_got_is_not_sent_twice() -> None:
    jobs = [Job(at, 1.5, "a", "/", None, "POST") for at in (0.0, 0.1)]
    scenario = Scenario(2, 1.0, jobs=lambda: iter(jobs), faults=(Fault("down", 0, 1.0),))
    result = Simulation(scenario, policy("hash_ring")).run()
    assert [job.state for job in jobs] == [-1, 200]
    assert (result.lost, result.retries) == (1, 0)


def test_a_slow_target_is_given_up_after_the_timeout() -> None:
    jobs = [Job(float(at), 0.5, "a", "/", None, "GET") for at in range(20)]
    scenario = Scenario(
        2, 0.5, jobs=lambda: iter(jobs), timeout=2.0, faults=(Fault("slow", 0, 0.0, 50.0, 1000.0),)
    )
    result = Simulation(scenario, policy("hash_ring")).run()
    assert (result.answered, result.evictions) == (20, 1)
    assert quantile(result, 1.0) == 2.5, "the timeout, and then the other target"


@pytest.mark.parametrize("retry", [False, True])
def test_who_answers_errors_at_once_draws_requests_unless_they_count(retry: bool) -> None:
    fault = Fault("errors", 0, 100.0, 500.0)
    result = poisson(10, 0.5, 4_000, "least_connections", faults=(fault,), retry_errors=retry)
    if retry:
        assert (result.errors, result.evictions > 0, result.retries > 0) == (0, True, True)
    else:
        assert result.errors > 1.5 * 400 * 0.5, "of a target's fair share"
        assert result.evictions == 0


def test_full_targets_let_requests_wait_in_the_pools_queue() -> None:
    jobs = [Job(0.0, 1.0, "a", "/", None, "GET") for _ in range(8)]
    scenario = Scenario(
        2, 1.0, jobs=lambda: iter(jobs), max_connections=1, queue_size=5, queue_timeout=1.5
    )
    simulation = Simulation(scenario, policy("least_connections"))
    result = simulation.run()
    assert [job.state for job in jobs] == [200, 200, 200, 200, -1, -1, -1, -1]
    assert result.peaks == [1, 1]
    assert simulation.now == 2.0
    assert simulation.pools[0].waiting() == 0


def test_weights_and_speeds_go_together() -> None:
    result = poisson(4, 0.3, 4_000, "hash_ring", speeds={0: 5.0}, weights={0: 5})
    assert result.served == [2500, 500, 500, 500]


# Several proxies


def test_proxies_that_know_only_their_own_requests_lose_what_least_connections_wins() -> None:
    alone = poisson(20, 0.8, 20_000, "least_connections", warm_up=50)
    many = poisson(20, 0.8, 20_000, "least_connections", proxies=20, warm_up=50)
    assert mean(many) > 2 * mean(alone)


def test_stale_news_make_a_herd_and_two_choices_do_not() -> None:
    stale = {"proxies": 20, "share": 10.0, "warm_up": 50.0}
    herd = poisson(20, 0.8, 20_000, "least_connections", **stale)  # type: ignore[arg-type]
    blind = poisson(20, 0.8, 20_000, "random", **stale)  # type: ignore[arg-type]
    two = poisson(20, 0.8, 20_000, "power_of_two_choices", **stale)  # type: ignore[arg-type]
    assert mean(herd) > mean(two)
    assert mean(two) < mean(blind)


def test_proxies_that_begin_together_go_in_step() -> None:
    together = poisson(100, 0.7, 10_000, "hash_ring", proxies=50, in_step=True)
    anyhow = poisson(100, 0.7, 10_000, "hash_ring", proxies=50)
    assert mean(together) > 1.5 * mean(anyhow)


# The events themselves


class Watched(Simulation):
    """Keeps when each target was busy, and looks at everything while it runs."""

    def __init__(self, scenario: Scenario, name: str) -> None:
        super().__init__(scenario, policy(name))
        self.moments: list[float] = []
        self.ends: dict[tuple[int, int], list[float]] = defaultdict(list)
        for half in range(80):
            self.call(half / 2, self.check)

    def _serve(self, server: Server, job: Job, attempt: int) -> None:
        ends = self.ends[server.at, server.life]
        assert sum(end > self.now for end in ends) < self.scenario.at_once, "it was full"
        assert self.now >= job.arrived
        ends.append(self.now + job.size * server.factor)
        super()._serve(server, job, attempt)

    def check(self) -> None:
        self.moments.append(self.now)
        for server in self.servers:
            assert server.load == len(server.under_way)
            assert not server.line or server.busy == self.scenario.at_once, "someone waits in vain"
            assert not server.down or not server.load
        for pool in self.pools:
            for target in pool.targets:
                assert 0 <= target.in_flight <= (target.max_connections or math.inf)


times = st.floats(0, 20, allow_nan=False)
faults = st.builds(
    lambda kind, at, begin, length: Fault(kind, at, begin, begin + length, 30.0),
    st.sampled_from(["down", "errors", "slow"]),
    st.integers(0, 3),
    times,
    st.floats(0.1, 10),
)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(POLICIES)),
    st.lists(st.tuples(times, st.floats(0.01, 3), st.integers(0, 5)), min_size=1, max_size=40),
    st.lists(faults, max_size=4),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 3]),
    st.sampled_from([None, 1, 2]),
    st.booleans(),
    st.integers(1, 3),
)
def test_every_request_ends_once_and_nothing_runs_backwards(
    name: str,
    coming: list[tuple[float, float, int]],
    wrong: list[Fault],
    at_once: int,
    proxies: int,
    limit: int | None,
    retry_errors: bool,
    attempts: int,
) -> None:
    jobs = [
        Job(at, size, f"10.0.0.{key}", f"/{key}", f"k{key}", "POST" if key == 5 else "GET")
        for at, size, key in sorted(coming)
    ]
    scenario = Scenario(
        targets=4,
        service_mean=1.0,
        jobs=lambda: iter(jobs),
        at_once=at_once,
        faults=tuple(wrong),
        removed=((0, 15.0),),
        proxies=proxies,
        sleeping=3.0,
        attempts=attempts,
        retry_errors=retry_errors,
        timeout=5.0,
        max_connections=limit,
        queue_size=6,
        queue_timeout=4.0,
    )
    simulation = Watched(scenario, name)
    result = simulation.run()
    simulation.check()
    assert all(before <= after for before, after in pairwise(simulation.moments))
    assert result.requests == len(jobs)
    assert result.answered + result.errors + result.lost == len(jobs)
    states = [job.state for job in jobs]
    assert states.count(200) == result.answered
    assert states.count(500) == result.errors
    assert states.count(-1) == result.lost
    assert sum(result.served) >= result.answered + result.errors
    assert len(result.times) == result.answered + result.errors
    assert min(result.times, default=0.0) >= 0
    for job in jobs:
        assert len(set(job.tried)) == len(job.tried), "each target once"
    for pool in simulation.pools:
        assert pool.waiting() == 0
        assert sum(target.in_flight for target in pool.targets) == 0
    if not wrong and limit is None:
        assert max(result.times) >= min(size for _, size, _ in coming) * (1 - 1e-9)


@pytest.mark.parametrize("name", ["random", "power_of_two_choices", "least_response_time"])
def test_the_same_seed_gives_the_same_results(name: str) -> None:
    one, again = (poisson(5, 0.8, 2_000, name, proxies=2) for _ in range(2))
    assert one == again
    assert one.times == again.times
    other = poisson(5, 0.8, 2_000, name, proxies=2, seed=5)
    assert other.times != one.times


def test_every_policy_gets_the_same_requests() -> None:
    def arrivals() -> list[tuple[float, float, str]]:
        jobs = drawn(5.0, 100, ONE, 50, 1.0, 3)
        return [(job.arrived, job.size, job.address) for job in jobs]

    assert arrivals() == arrivals()


# The requests


@pytest.mark.parametrize(
    ("service", "variance"),
    [
        (Service("constant", 2.0), 0.0),
        (Service("exponential", 2.0), 4.0),
        (Service("uniform", 2.0, 1.5), 0.75),
        (Service("lognormal", 2.0, 0.5), 4.0 * (math.exp(0.25) - 1)),
        (Service("pareto", 2.0, 6.0), 4.0 / (6 * (6 - 2))),
    ],
    ids=str,
)
def test_service_times_have_their_mean_and_variance(service: Service, variance: float) -> None:
    draw = service.draw(Random(1))
    found = [draw() for _ in range(40_000)]
    average = sum(found) / len(found)
    assert close(average, 2.0)
    spread = sum((one - average) ** 2 for one in found) / len(found)
    assert abs(spread - variance) <= 0.12 * variance


def test_keys_come_as_often_as_zipf_says() -> None:
    draw = zipf(100, 1.0, Random(1))
    found = [draw() for _ in range(40_000)]
    total = sum(1 / k for k in range(1, 101))
    assert {0, 99} <= set(found) <= set(range(100))
    for at in (0, 1, 3):
        assert abs(found.count(at) / 40_000 * total * (at + 1) - 1) < 0.06
    alike = zipf(3, 0.0, Random(1))
    assert {alike() for _ in range(50)} == {0, 1, 2}


COMBINED = (
    '10.0.0.1 - - [21/Nov/2026:10:00:00 +0000] "GET /a HTTP/1.1" 200 5 "-" "x" '
    "http://localhost:1 0.250 1\n"
    '10.0.0.2 - - [21/Nov/2026:10:00:00 +0000] "POST /b HTTP/1.1" 200 5 "-" "x" '
    "http://localhost:1 0.000 1\n"
    '10.0.0.3 - - [21/Nov/2026:10:00:04 +0000] "GET /c HTTP/1.1" 404 5 "-" "x"\n'
)


def test_a_log_tells_who_comes_when_and_how_long_it_took(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text(COMBINED)
    visits = read_log(path)
    assert [(one.address, one.method, one.uri) for one in visits] == [
        ("10.0.0.1", "GET", "/a"),
        ("10.0.0.2", "POST", "/b"),
        ("10.0.0.3", "GET", "/c"),
    ]
    assert [one.arrived for one in visits] == [0.0, 0.75, 4.5]
    assert [one.seconds for one in visits] == [0.25, 0.0, None]
    assert [one.arrived for one in read_log(path, faster=2)] == [0.0, 0.375, 2.25]
    jobs = list(replayed(visits, None, 1))
    assert [job.size for job in jobs] == [0.25, 0.0, 0.0]
    assert all(job.size == 3.0 for job in replayed(visits, Service("constant", 3.0), 1))


@pytest.mark.parametrize(
    "line",
    [
        *("nonsense", "{}", '{"time": "x", "client": "a"}', "[1]", '{"client": "a"', '{"time": 1}'),
        *(
            f'{{"time": "2026-01-01T00:00:00Z", "client": "a", "target": "b", "seconds": {took}}}'
            for took in ("NaN", "Infinity", "1e308", "-1", "[]", '"x"')  # which never end, some
        ),
        f'a - - [01/Jan/2026:00:00:00 +0000] "GET / HTTP/1.1" 200 1 "-" "-" b {"9" * 400}.0 1',
    ],
)
def test_a_line_that_is_none_of_a_log_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "access.log"
    path.write_text(COMBINED + line + "\n")
    with pytest.raises(SettingsError, match="line 4: expected the combined format"):
        read_log(path)


def test_a_log_with_nothing_in_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text("\n")
    with pytest.raises(SettingsError, match="no requests are in it"):
        read_log(path)
    with pytest.raises(SettingsError, match="no such file"):
        read_log(tmp_path / "nowhere.log")
