"""The checks of the cluster, one function each, in the order in which they run."""

import collections
import contextlib
import itertools
import re
import threading
import time
from dataclasses import dataclass

import clients
import dcs
import lease
import pollers
from bad_clients import KINDS, BadClients, kinds
from check_load import CheckLoad
from clients import PromotionWatch, ask
from cluster import Cluster
from haproxy import INTER_S, RISE, HAProxy
from old_patroni import old_patroni
from pollers import Pollers
from switchovers import switchovers
from waiting import wait_for

BAD_CLIENTS_S = 15.0
FREEZE_S = 15.0
LOAD_S = 20.0
CHECKS_PER_SECOND = 200
FAILSAFE_CHECKS_PER_SECOND = 50
# A second, of one leader route. Patroni's answers are kept for a second, and a refresh may begin
# `cache.interval` early.
FAILSAFE_FETCHES_MAX = 2.5
POLL_EVERY_S = 0.1
COMPARE_EVERY_S = 0.05
# Allowed for a write's connection and for HAProxy's checks being some milliseconds late.
CONNECT_S = 0.7

# Every route except /config and /failsafe, and other spellings that clients use.
TARGETS = """
    / /primary /read-write /master /leader //leader /primary/ /primary?lag=1
    /standby-leader /standby_leader
    /replica /replica?lag=10MB /replica?lag=junk /replica?tag_color=blue /read-only
    /sync /synchronous /async /asynchronous /quorum
    /read-only-sync /read-only-synchronous /read-only-quorum
    /health /liveness /readiness /readiness?lag=10MB&mode=write
    /patroni /cluster /history /metrics
""".split()

# Values that change between two requests: only their presence is compared.
MOVING = [
    # whole seconds of the latest read of etcd: a new value each loop_wait
    (rb'"dcs_last_seen": \d+', b'"dcs_last_seen": *'),
    # positions in the write-ahead log, of the node and of its replicas: there are writes
    (rb'"(location|received_location|replayed_location)": \d+', rb'"\1": *'),
    (rb'"(receive_lsn|replay_lsn|lsn)": "[^"]*"', rb'"\1": *'),
    (rb'"(receive_lag|replay_lag|lag)": (\d+|"unknown")', rb'"\1": *'),
    # the time of the latest replayed transaction
    (rb'"replayed_timestamp": (null|"[^"]*")', b'"replayed_timestamp": *'),
]
# Metrics are compared by name, labels and comments, because most of their values change.
METRIC = (rb"(?m)^([a-z_]+\{[^}]*\}) \S+$", rb"\1 *")


@dataclass
class Setup:
    """The running cluster, HAProxy and writer, and the report."""
    cluster: Cluster
    haproxy: HAProxy
    writer: clients.Writer
    report: object
    switchovers: int


# Routing


def primary(setup):
    """The write port leads to the leader, the read port to the others."""
    leader = setup.cluster.leader()
    start = time.monotonic()
    wait_for("ten writes", lambda: len(setup.writer.since(start)) >= 10, 10)
    ends = {one.server for one in setup.writer.since(start)}
    setup.report.check("the write port leads to the leader and nowhere else",
                       ends == {(leader.host, leader.postgres_port)}, f"{leader.name}, {ends}")
    readers = set()
    for _ in range(4):
        connection = clients.connect(*setup.haproxy.read)
        cursor = connection.cursor()
        cursor.execute("select host(inet_server_addr()), inet_server_port()")
        readers.add(cursor.fetchone())
        connection.close()
    expected = {(node.host, node.postgres_port) for node in setup.cluster.others(leader)}
    setup.report.check("the read port leads to both others", readers == expected, str(readers))


# Answers equal to Patroni's


def routes(setup):
    """patroniglue's status, Content-Type and body are Patroni's; other routes are refused."""
    for node in setup.cluster.nodes:
        statuses, problems = {}, []
        for target in TARGETS:
            status, problem = _compare(node, target, 3 if len(problems) < 3 else 1)
            statuses.setdefault(status, []).append(target)
            if problem:
                problems.append(f"{target}: {problem}")
        seen = ", ".join(f"{len(those)} with {status}" for status, those in statuses.items())
        setup.report.check(f"{node.name}: {len(TARGETS)} targets answer as in Patroni ({seen})",
                           not problems and set(statuses) == {200, 503}, "; ".join(problems))
    node = setup.cluster.leader()
    for method, target, wanted in [("GET", "/config", (404,)), ("GET", "/failsafe", (404,)),
                                   ("PATCH", "/config", (404, 405)),
                                   ("POST", "/switchover", (404, 405)),
                                   ("POST", "/restart", (404, 405))]:
        answer = ask(node.patroniglue, method, target)
        setup.report.check(f"{method} {target} is refused by patroniglue", answer.status in wanted,
                           f"{answer.status} {answer.error}")


def _compare(node, target, tries):
    """Returns (status, difference). Repeats when the state changed between the requests."""
    for _ in range(tries):
        own = [ask(node.patroni, "GET", target)]
        through = [(method, ask(node.patroniglue, method, target))
                   for method in ("GET", "HEAD", "OPTIONS")]
        own.append(ask(node.patroni, "GET", target))
        problems = [_difference(target, one, through) for one in own]
        if not all(problems):
            return own[0].status, ""
        time.sleep(1.1)  # longer than patroniglue's ttl, so that it asks again
    return own[0].status, problems[-1]


def _difference(target, own, through):
    for method, answer in through:
        if answer.status != own.status:
            return f"{method}: {answer.status} {answer.error}, Patroni {own.status} {own.error}"
        if method == "OPTIONS" and "allow" not in answer.headers:
            return "OPTIONS: no Allow"
        if method != "GET" and answer.body:
            return f"{method}: a body, {answer.body[:80]!r}"
        if method == "GET" and _fixed(target, answer.body) != _fixed(target, own.body):
            return f"body {answer.body!r}, Patroni's {own.body!r}"
        kinds = [one.headers.get("content-type") for one in (answer, own)]
        if method != "OPTIONS" and kinds[0] != kinds[1]:
            return f"{method}: Content-Type {kinds[0]}, Patroni's {kinds[1]}"
    return ""


def _fixed(target, body):
    for pattern, constant in [METRIC] if target == "/metrics" else MOVING:
        body = re.sub(pattern, constant, body)
    return body


# Bad clients


def bad_clients(setup):
    """5, then 500 bad clients of each kind on each patroniglue disturb no check and no write."""
    addresses = [node.patroniglue for node in setup.cluster.nodes]
    for count in (5, 500):
        start = time.monotonic()
        before = setup.haproxy.servers()
        with contextlib.ExitStack() as stack:
            present = [stack.enter_context(BadClients(kind, count, addresses)) for kind in
                       kinds(setup.cluster.settings.tls)]
            names = ", ".join(kinds(setup.cluster.settings.tls))
            setup.report.log(f"{count} clients of each kind ({names}) on every patroniglue,"
                             f" {BAD_CLIENTS_S:.0f} s")
            answers = _poll_all(setup.cluster, BAD_CLIENTS_S)
        after = setup.haproxy.servers()
        for group in present:
            setup.report.log(f"  {group.what}: {group.counts}")
        wrong = [problem for problem, _ in answers if problem]
        slowest = max(took for _, took in answers)
        setup.report.check(f"{count} each: {len(answers)} correct answers, slowest"
                           f" {slowest * 1000:.0f} ms", not wrong and slowest < 1.0,
                           "; ".join(wrong[:5]))
        setup.report.check(f"{count} each: no check of HAProxy failed", after == before,
                           _differences(before, after))
        check_no_outage(setup, start, f"{count} each")


def _poll_all(cluster, seconds):
    """Asks each patroniglue every POLL_EVERY_S. Returns (error, seconds) of each request."""
    leader = cluster.leader()
    answers = []

    def poll(node):
        expected = [("OPTIONS", "/primary", 200 if node is leader else 503),
                    ("OPTIONS", "/replica", 503 if node is leader else 200),
                    ("GET", "/primary", 200 if node is leader else 503),
                    ("GET", "/health", 200)]
        due = time.monotonic()
        end = due + seconds
        for number in itertools.count():
            if due >= end:
                return
            method, target, status = expected[number % len(expected)]
            answer = ask(node.patroniglue, method, target)
            wrong = "" if answer.status == status else (
                f"{node.name} {method} {target}: {answer.status} {answer.error}, not {status}")
            answers.append((wrong, answer.took_s))
            due = max(due + POLL_EVERY_S, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))

    threads = [threading.Thread(target=poll, args=(node,)) for node in cluster.nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _differences(before, after):
    return "; ".join(f"{' '.join(key)}: {before[key]} -> {after[key]}"
                     for key in before if before[key] != after[key])


def unprotected(setup):
    """Five of the same clients freeze Patroni itself: the check of bad clients can fail."""
    # On a replica: its frozen API costs a server of the read port, but no writes.
    node = setup.cluster.others(setup.cluster.leader())[0]
    # with TLS, plain text ends the handshake and the connection: only silence freezes Patroni
    for kind in ["silent"] if setup.cluster.settings.tls else KINDS:
        with BadClients(kind, 5, [node.patroni]):
            time.sleep(0.3)
            answer = ask(node.patroni, "OPTIONS", "/replica", 3.0)
        setup.report.check(f"five {kind} clients on the Patroni of {node.name} freeze it",
                           "timed out" in answer.error, f"{answer.status} {answer.error}")
        back = wait_for(f"Patroni of {node.name}",
                     lambda: ask(node.patroni, "OPTIONS", "/replica", 1.0).status == 200, 10)
        setup.report.log(f"  it answers again {back:.1f} s after they have closed")
    setup.haproxy.wait_for_leader(setup.cluster.leader(), 15)


def freeze(setup):
    """Five silent clients freeze the leader's Patroni for 15 s: measures the write outage."""
    leader = setup.cluster.leader()
    direct = setup.cluster.settings.direct
    before = setup.haproxy.servers()
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        polled = None if direct else stack.enter_context(lease.poll_primary(setup, leader))
        with BadClients("silent", 5, [leader.patroni]):
            setup.report.log(f"five silent clients on the Patroni of {leader.name},"
                             f" {FREEZE_S:.0f} s")
            down = None
            while time.monotonic() < start + FREEZE_S:
                if down is None and leader.name not in setup.haproxy.up("write"):
                    down = time.monotonic() - start
                    setup.report.log(f"HAProxy took {leader.name} out after {down:.1f} s")
                time.sleep(0.1)
        setup.haproxy.wait_for_leader(leader, 20)
    if polled is not None:
        lease.check_ages(setup, leader, polled.samples[leader.patroniglue], "frozen")
    times = (setup.haproxy.servers()["write", leader.name].times_down
             - before["write", leader.name].times_down)
    length = sum(one.length for one in setup.writer.outages(start))
    setup.report.check(f"{length:.1f} s of write outage, {times} times DOWN, then the same leader",
                       setup.cluster.leader() is leader)
    if direct:
        setup.report.check("with Patroni checked directly this is an outage", length > 3.0,
                           f"{length:.1f} s")
    check_no_standby(setup, start)


def load(setup):
    """200 checks a second of the leader for 20 s: all are answered, few reach Patroni."""
    leader = setup.cluster.leader()
    direct = setup.cluster.settings.direct
    start, begun = time.monotonic(), time.time()
    before = setup.haproxy.servers()
    address = leader.patroni if direct else leader.patroniglue
    with CheckLoad(CHECKS_PER_SECOND, address, ["/primary", "/replica"],
                   setup.cluster.pki) as load:
        time.sleep(LOAD_S)
    asked = _fetches(leader, begun, time.time())
    times = (setup.haproxy.servers()["write", leader.name].times_down
             - before["write", leader.name].times_down)
    length = sum(one.length for one in setup.writer.outages(start))
    setup.report.log(f"{load.result}; {length:.1f} s of write outage, {times} times DOWN;"
                     f" requests a second at Patroni: {asked}")
    if direct:
        setup.haproxy.wait_for_leader(leader, 30)
        return
    statuses = set(load.result["statuses"])
    setup.report.check("every check got the correct answer",
                       statuses == {"/primary 200", "/replica 503"}
                       and load.result["asked"] >= 0.9 * CHECKS_PER_SECOND * LOAD_S,
                       str(load.result))
    setup.report.check("at most 2 requests a second and route reached Patroni",
                       asked and max(asked.values()) <= 2, str(asked))
    setup.report.check("no write outage, the leader was never DOWN", length == 0 and times == 0)


def failsafe(setup):
    """etcd is stopped, Patroni is in failsafe mode: every check is 200, few reach Patroni."""
    cluster = setup.cluster
    leader = cluster.leader()
    _set_failsafe_mode(cluster, "true")
    try:
        wait_for("failsafe topology", lambda: all(
            ask(node.patroni, "GET", "/failsafe").status == 200 for node in cluster.nodes), 10)
        start = time.monotonic()
        cluster.etcd.stop()
        with CheckLoad(FAILSAFE_CHECKS_PER_SECOND, leader.patroniglue, ["/primary"],
                       cluster.pki) as load:
            took = wait_for("failsafe mode", lambda: b'"failsafe_mode_is_active": true' in ask(
                leader.patroni, "GET", "/patroni").body, 30)
            setup.report.log(f"failsafe mode is active {took:.1f} s after etcd was stopped")
            # Until then dcs_last_seen alone would allow a leader's answer to be kept.
            time.sleep(max(0.0, cluster.settings.ttl - took))
            lease_over = time.time()
            time.sleep(LOAD_S)
            end = time.time()
    finally:
        cluster.etcd.start()
        wait_for("leader", cluster.leader, 30)
        _set_failsafe_mode(cluster, "null")
    fetches = _fetches(leader, lease_over, end).get("/primary", 0.0)
    setup.report.check(f"{load.result['asked']} checks of /primary were all 200",
                       set(load.result["statuses"]) == {"/primary 200"}
                       and load.result["asked"] >= 0.9 * FAILSAFE_CHECKS_PER_SECOND * LOAD_S,
                       str(load.result))
    setup.report.check(f"{fetches} fetches of /primary a second reached Patroni, at most"
                       f" {FAILSAFE_FETCHES_MAX}", 0 < fetches <= FAILSAFE_FETCHES_MAX)
    check_no_outage(setup, start, "failsafe mode")


def _set_failsafe_mode(cluster, value):
    cluster.patronictl("edit-config", "--force", "--quiet", "--set", f"failsafe_mode={value}")


def _fetches(node, start, end):
    """Returns {target: requests a second} that reached a node's Patroni between these times."""
    time.sleep(1)  # Patroni writes its log in batches
    counts = collections.Counter(target for when, target, _ in node.answers()
                                 if start <= when <= end)
    return {target: round(count / (end - start), 2) for target, count in counts.items()}


# A new primary


def switchover(setup):
    """patronictl switchover: writes move to the new primary, the previous one becomes a replica."""
    old = setup.cluster.leader()
    candidate = setup.cluster.others(old)[0]
    watch = PromotionWatch([candidate])
    start = time.monotonic()
    with _compared(setup, [old, candidate]):
        setup.cluster.patronictl("switchover", "--leader", old.name, "--candidate",
                                 candidate.name, "--force")
        new = _wait_for_writes_elsewhere(setup, old, start, watch, 20)
    setup.report.check(f"after the switchover writes go to {candidate.name}", new is candidate)
    back = wait_for("previous leader as a streaming replica", setup.cluster.is_healthy, 30, 0.3)
    setup.report.log(f"{old.name} streams as a replica {back:.1f} s later")
    setup.haproxy.wait_for_leader(new, 15)
    check_no_standby(setup, start)


def kill_leader(setup):
    """SIGKILL of the leader's Patroni and PostgreSQL: writes move when its lease has ended."""
    settings = setup.cluster.settings
    old = setup.cluster.leader()
    watch = PromotionWatch(setup.cluster.others(old))
    start = time.monotonic()
    setup.report.log(f"kill -9 of Patroni and PostgreSQL of {old.name}")
    old.kill()
    if not settings.direct:
        time.sleep(1.1)  # longer than patroniglue's ttl
        answer = ask(old.patroniglue, "GET", "/primary")
        setup.report.check(f"patroniglue of {old.name} says at once that its Patroni is gone",
                           answer.status == 503 and answer.took_s < 0.25,
                           f"{answer.status} {answer.error} after {answer.took_s:.2f} s")
    # The lease ends, the other nodes notice in their next loop, one of them wins the race.
    limit_s = settings.ttl + settings.loop_wait + 2 * settings.retry_timeout + 15
    new = _wait_for_writes_elsewhere(setup, old, start, watch, limit_s)
    setup.report.check(f"after kill -9 of {old.name} writes go to {new.name}",
                       new is setup.cluster.leader())
    setup.haproxy.wait_for_leader(new, 20)
    check_no_standby(setup, start)


@contextlib.contextmanager
def _compared(setup, nodes):
    """Checks that patroniglue's /primary is meanwhile never later than Patroni by more than ttl."""
    if setup.cluster.settings.direct:
        yield
        return
    ttl_s = setup.cluster.settings.cache["ttl"]
    addresses = [address for node in nodes for address in (node.patroni, node.patroniglue)]
    with Pollers(COMPARE_EVERY_S, "/primary", addresses, setup.cluster.pki) as polled:
        yield
    for node in nodes:
        direct = polled.samples[node.patroni]
        found = pollers.late(direct, polled.samples[node.patroniglue], ttl_s)
        worst = max((by for _, by in found), default=0.0)
        changes = pollers.changes(direct)  # none would mean that nothing was tested
        setup.report.check(f"{node.name}: /primary of patroniglue is at most {ttl_s} s late",
                           not found and changes > 0,
                           f"{len(found)} answers, the worst {worst:.2f} s late; Patroni's own"
                           f" changed {changes} times")


def _wait_for_writes_elsewhere(setup, old, start, watch, limit_s):
    """Waits for a write on another node than `old`, logs the outage and returns that node."""
    arrived = []

    def elsewhere():
        arrived[:] = [one for one in setup.writer.since(start)
                      if one.written and one.server != (old.host, old.postgres_port)]
        return arrived

    try:
        wait_for("write on another node", elsewhere, limit_s)
    finally:
        watch.stop()
    _check_time_to_write(setup, watch, arrived[0].ended)
    for one in setup.writer.outages(start):
        setup.report.log(f"outage of {one.length:.1f} s, {one.start - start:.1f} s after the"
                         " start")
    if watch.at is not None:
        setup.report.log(f"{watch.node.name} was promoted after {watch.at - start:.1f} s; the first"
                         f" write arrived {arrived[0].ended - watch.at:.1f} s later")
    return next(node for node in setup.cluster.nodes
                if (node.host, node.postgres_port) == arrived[0].server)


def _check_time_to_write(setup, watch, arrived_at):
    """patroniglue adds at most its ttl to HAProxy's own time: `rise` good checks, `inter` apart."""
    settings = setup.cluster.settings
    if settings.direct or watch.at is None:
        return
    took_s = arrived_at - watch.at
    limit_s = RISE * INTER_S + settings.cache["ttl"] + CONNECT_S
    setup.report.check(f"the first write arrived at most {limit_s:.1f} s after the promotion",
                       took_s <= limit_s, f"{took_s:.2f} s")


# Conditions of several checks


def check_no_standby(setup, start):
    attempts = setup.writer.since(start)
    served = [one for one in attempts if one.server]
    wrong = [one for one in served if one.on_standby]
    setup.report.check(
        f"none of {len(served)} connections to the write port ended on a standby", not wrong,
        ", ".join(f"{one.server[0]} after {one.began - start:.2f} s" for one in wrong[:10])
        + f" ({len(wrong)} in total)")


def check_no_outage(setup, start, when):
    outages = setup.writer.outages(start)
    errors = {one.error for one in setup.writer.since(start) if one.error}
    setup.report.check(f"{when}: every write succeeded", not outages, f"{outages} {errors}")
    check_no_standby(setup, start)


# name -> (function, whether it needs patroniglue)
CHECKS = {
    "primary": (primary, False),
    "routes": (routes, True),
    "bad-clients": (bad_clients, True),
    "unprotected": (unprotected, False),
    "switchover": (switchover, False),
    "switchovers": (switchovers, True),
    "old-patroni": (old_patroni, True),
    "kill": (kill_leader, False),
    "freeze": (freeze, False),
    "load": (load, False),
    "failsafe": (failsafe, True),
    "silent": (lease.silent_patroni, True),
    "stopped": (lease.stopped_shortly, True),
    "stopped-for-good": (lease.stopped_for_good, True),
    "dcs-frozen": (dcs.frozen_for_long, True),
    "dcs-foreign": (dcs.foreign_cluster, True),
    "dcs-stopped": (dcs.stopped_shortly, True),
    "dcs-switchover": (dcs.switchover_while_frozen, True),
    "dcs-stopped-for-good": (dcs.stopped_for_good, True),
    "dcs-etcd-stopped": (dcs.etcd_stopped, True),
    "dcs-access": (dcs.access, True),
}
# The checks of a run with --dcs. After a restart of etcd a replica's Patroni may take 20 s to see
# that the leader key is gone: so that check comes after those with another leader.
DCS = [name for name in CHECKS if name.startswith("dcs-")]
# The checks of a run with --grace.
GRACE = ["primary", "bad-clients", "silent", "stopped", "load", "switchover", "stopped-for-good"]
# The checks of any other run. kill is the last one because its node stays dead.
USUAL = ["primary", "routes", "bad-clients", "unprotected", "failsafe", "switchover", "switchovers",
         "old-patroni", "kill"]
