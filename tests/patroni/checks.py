"""What is checked on the cluster, one function each, in the order in which they are run."""

import collections
import contextlib
import itertools
import re
import threading
import time
from dataclasses import dataclass

import clients
import lease
from bad_clients import KINDS, Crowd, kinds
from check_load import Checkers
from clients import Promotion, Shadow, ask
from cluster import Cluster, until
from haproxy import INTER_S, RISE, HAProxy

CROWD_S = 15.0
FREEZE_S = 15.0
CHECKERS_S = 20.0
CHECKS_PER_SECOND = 200
POLL_EVERY_S = 0.1
# HAProxy's checks are some milliseconds apart, and a write needs a connection; on a busy machine.
CONNECT_S = 0.7

# Every route of the contract but /config and /failsafe, and forms in which clients ask for them.
TARGETS = """
    / /primary /read-write /master /leader //leader /primary/ /primary?lag=1
    /standby-leader /standby_leader
    /replica /replica?lag=10MB /replica?lag=junk /replica?tag_color=blue /read-only
    /sync /synchronous /async /asynchronous /quorum
    /read-only-sync /read-only-synchronous /read-only-quorum
    /health /liveness /readiness /readiness?lag=10MB&mode=write
    /patroni /cluster /history /metrics
""".split()

# What moves by itself between two requests, and is therefore compared by its presence alone.
MOVING = [
    # whole seconds of the latest read of etcd: a new one each loop_wait
    (rb'"dcs_last_seen": \d+', b'"dcs_last_seen": *'),
    # positions in the write-ahead log, of the node and of those that stream: there are writes
    (rb'"(location|received_location|replayed_location)": \d+', rb'"\1": *'),
    (rb'"(receive_lsn|replay_lsn|lsn)": "[^"]*"', rb'"\1": *'),
    (rb'"(receive_lag|replay_lag|lag)": (\d+|"unknown")', rb'"\1": *'),
    # the time of the latest transaction that was replayed
    (rb'"replayed_timestamp": (null|"[^"]*")', b'"replayed_timestamp": *'),
]
# Metrics are compared by name, labels and comments: most of their values move.
METRIC = (rb"(?m)^([a-z_]+\{[^}]*\}) \S+$", rb"\1 *")


@dataclass
class Bench:
    """Cluster, HAProxy and writer, all running, and where to say what was found."""
    cluster: Cluster
    haproxy: HAProxy
    writer: clients.Writer
    report: object


# Finding the primary


def primary(bench):
    """The write port leads to the leader, the read port to the others."""
    leader = bench.cluster.leader()
    start = time.monotonic()
    until("ten writes", lambda: len(bench.writer.since(start)) >= 10, 10)
    ends = {one.server for one in bench.writer.since(start)}
    bench.report.check("the write port leads to the leader and nowhere else",
                       ends == {(leader.host, leader.postgres_port)}, f"{leader.name}, {ends}")
    readers = set()
    for _ in range(4):
        connection = clients.connect(*bench.haproxy.read)
        cursor = connection.cursor()
        cursor.execute("select host(inet_server_addr()), inet_server_port()")
        readers.add(cursor.fetchone())
        connection.close()
    expected = {(node.host, node.postgres_port) for node in bench.cluster.others(leader)}
    bench.report.check("the read port leads to both others", readers == expected, str(readers))


# The same answers as Patroni's


def routes(bench):
    """Status, Content-Type and body through the glue are Patroni's; no other route is open."""
    for node in bench.cluster.nodes:
        statuses, problems = {}, []
        for target in TARGETS:
            status, problem = _compare(node, target, 3 if len(problems) < 3 else 1)
            statuses.setdefault(status, []).append(target)
            if problem:
                problems.append(f"{target}: {problem}")
        seen = ", ".join(f"{len(those)} of them {status}" for status, those in statuses.items())
        bench.report.check(f"{node.name}: {len(TARGETS)} targets answer as Patroni's own ({seen})",
                           not problems and set(statuses) == {200, 503}, "; ".join(problems))
    node = bench.cluster.leader()
    for method, target, wanted in [("GET", "/config", (404,)), ("GET", "/failsafe", (404,)),
                                   ("PATCH", "/config", (404, 405)),
                                   ("POST", "/switchover", (404, 405)),
                                   ("POST", "/restart", (404, 405))]:
        answer = ask(node.glue, method, target)
        bench.report.check(f"{method} {target} is refused by the glue", answer.status in wanted,
                           f"{answer.status} {answer.error}")


def _compare(node, target, tries):
    """(status, what differs); a change of state between the requests is given another chance."""
    for _ in range(tries):
        own = [ask(node.patroni, "GET", target)]
        through = [(method, ask(node.glue, method, target))
                   for method in ("GET", "HEAD", "OPTIONS")]
        own.append(ask(node.patroni, "GET", target))
        problems = [_difference(target, one, through) for one in own]
        if not all(problems):
            return own[0].status, ""
        time.sleep(1.1)  # the glue's ttl: what it has now is older than what we saw
    return own[0].status, problems[-1]


def _difference(target, own, through):
    for method, answer in through:
        if answer.status != own.status:
            return f"{method}: {answer.status} {answer.error}, Patroni {own.status} {own.error}"
        if method == "OPTIONS" and "allow" not in answer.headers:
            return "OPTIONS: no Allow"
        if method != "GET" and answer.body:
            return f"{method}: a body, {answer.body[:80]!r}"
        if method == "GET" and _still(target, answer.body) != _still(target, own.body):
            return f"body {answer.body!r}, Patroni's {own.body!r}"
        kinds = [one.headers.get("content-type") for one in (answer, own)]
        if method != "OPTIONS" and kinds[0] != kinds[1]:
            return f"{method}: Content-Type {kinds[0]}, Patroni's {kinds[1]}"
    return ""


def _still(target, body):
    for pattern, constant in [METRIC] if target == "/metrics" else MOVING:
        body = re.sub(pattern, constant, body)
    return body


# Bad clients


def crowds(bench):
    """Five, then five hundred bad clients of each kind on each glue: nobody notices."""
    addresses = [node.glue for node in bench.cluster.nodes]
    for count in (5, 500):
        start = time.monotonic()
        before = bench.haproxy.servers()
        with contextlib.ExitStack() as stack:
            present = [stack.enter_context(Crowd(kind, count, addresses)) for kind in
                       kinds(bench.cluster.settings.tls)]
            names = ", ".join(kinds(bench.cluster.settings.tls))
            bench.report.say(f"{count} clients of each kind ({names}) on every glue,"
                             f" {CROWD_S:.0f} s")
            answers = _poll_all(bench.cluster, CROWD_S)
        after = bench.haproxy.servers()
        for crowd in present:
            bench.report.say(f"  {crowd.what}: {crowd.counts}")
        wrong = [problem for problem, _ in answers if problem]
        slowest = max(took for _, took in answers)
        bench.report.check(f"{count} each: {len(answers)} answers right, slowest"
                           f" {slowest * 1000:.0f} ms", not wrong and slowest < 1.0,
                           "; ".join(wrong[:5]))
        bench.report.check(f"{count} each: not one check of HAProxy failed", after == before,
                           _changes(before, after))
        no_outage(bench, start, f"{count} each")


def _poll_all(cluster, seconds):
    """(what is wrong, seconds it took) of a request to each glue each 100 ms."""
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
            answer = ask(node.glue, method, target)
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


def _changes(before, after):
    return "; ".join(f"{' '.join(key)}: {before[key]} -> {after[key]}"
                     for key in before if before[key] != after[key])


def contrast(bench):
    """Five of the same clients on Patroni itself freeze it: what is checked above can fail."""
    # On a replica: its frozen API costs a server of the read port, but no write.
    node = bench.cluster.others(bench.cluster.leader())[0]
    # over TLS, nonsense ends the handshake and with it the connection: only silence freezes it
    for kind in ["silent"] if bench.cluster.settings.tls else KINDS:
        with Crowd(kind, 5, [node.patroni]):
            time.sleep(0.3)
            answer = ask(node.patroni, "OPTIONS", "/replica", 3.0)
        bench.report.check(f"five {kind} clients on the Patroni of {node.name} freeze it",
                           "timed out" in answer.error, f"{answer.status} {answer.error}")
        back = until(f"Patroni of {node.name}",
                     lambda: ask(node.patroni, "OPTIONS", "/replica", 1.0).status == 200, 10)
        bench.report.say(f"  it answers again {back:.1f} s after they left")
    bench.haproxy.until_it_knows(bench.cluster.leader(), 15)


def freeze(bench):
    """Five silent clients on the leader's Patroni for 15 s: what becomes of the writes."""
    leader = bench.cluster.leader()
    direct = bench.cluster.settings.direct
    before = bench.haproxy.servers()
    start = time.monotonic()
    listener = None if direct else lease.Listener(leader)
    with Crowd("silent", 5, [leader.patroni]):
        bench.report.say(f"five silent clients on the Patroni of {leader.name},"
                         f" {FREEZE_S:.0f} s")
        down = None
        while time.monotonic() < start + FREEZE_S:
            if down is None and leader.name not in bench.haproxy.up("write"):
                down = time.monotonic() - start
                bench.report.say(f"HAProxy took {leader.name} out {down:.1f} s after they came")
            time.sleep(0.1)
    bench.haproxy.until_it_knows(leader, 20)
    if listener is not None:
        listener.stop()
        lease.never_older(bench, leader, listener.said, "frozen")
    times = (bench.haproxy.servers()["write", leader.name].times_down
             - before["write", leader.name].times_down)
    length = sum(one.length for one in bench.writer.outages(start))
    bench.report.check(f"{length:.1f} s of write outage, {times} times DOWN, then all is as before",
                       bench.cluster.leader() is leader)
    if direct:
        bench.report.check("straight at Patroni that is an outage of seconds", length > 3.0,
                           f"{length:.1f} s")
    no_standby(bench, start)


def checkers(bench):
    """Two hundred checks a second at the leader for 20 s: nobody notices, Patroni least of all."""
    leader = bench.cluster.leader()
    direct = bench.cluster.settings.direct
    start, begun = time.monotonic(), time.time()
    before = bench.haproxy.servers()
    address = leader.patroni if direct else leader.glue
    with Checkers(CHECKS_PER_SECOND, address, bench.cluster.pki) as crowd:
        time.sleep(CHECKERS_S)
    seconds = time.monotonic() - start
    time.sleep(1)  # Patroni's log comes in pieces
    asked = collections.Counter(target for when, target, _ in leader.answers() if when >= begun)
    asked = {target: round(count / seconds, 2) for target, count in asked.items()}
    times = (bench.haproxy.servers()["write", leader.name].times_down
             - before["write", leader.name].times_down)
    length = sum(one.length for one in bench.writer.outages(start))
    bench.report.say(f"{crowd.result}; {length:.1f} s of write outage, {times} times DOWN;"
                     f" requests a second at Patroni: {asked}")
    if direct:
        bench.haproxy.until_it_knows(leader, 30)
        return
    statuses = set(crowd.result["statuses"])
    bench.report.check("each of them had the right answer",
                       statuses == {"/primary 200", "/replica 503"}
                       and crowd.result["asked"] >= 0.9 * CHECKS_PER_SECOND * CHECKERS_S,
                       str(crowd.result))
    bench.report.check("Patroni was asked at most twice a second and route",
                       asked and max(asked.values()) <= 2, str(asked))
    bench.report.check("no write outage, the leader was never DOWN", length == 0 and times == 0)


# Another primary


def switchover(bench):
    """patronictl switchover: the new primary is found, the old one comes back as a replica."""
    old = bench.cluster.leader()
    candidate = bench.cluster.others(old)[0]
    watch = Promotion([candidate])
    start = time.monotonic()
    with _agreement(bench, [old, candidate]):
        bench.cluster.patronictl("switchover", "--leader", old.name, "--candidate",
                                 candidate.name, "--force")
        new = _moved(bench, old, start, watch, 20)
    bench.report.check(f"after the switchover writes go to {candidate.name}", new is candidate)
    back = until("old leader as a streaming replica", bench.cluster.is_healthy, 30, 0.3)
    bench.report.say(f"{old.name} streams as a replica {back:.1f} s later")
    bench.haproxy.until_it_knows(new, 15)
    no_standby(bench, start)


def kill_leader(bench):
    """kill -9 of the leader, Patroni and PostgreSQL: after its lease the next one is found."""
    settings = bench.cluster.settings
    old = bench.cluster.leader()
    watch = Promotion(bench.cluster.others(old))
    start = time.monotonic()
    bench.report.say(f"kill -9 of Patroni and PostgreSQL of {old.name}")
    old.kill()
    if not settings.direct:
        time.sleep(1.1)  # the ttl of what its glue still knows
        answer = ask(old.glue, "GET", "/primary")
        bench.report.check(f"the glue of {old.name} says at once that its Patroni is gone",
                           answer.status == 503 and answer.took_s < 0.25,
                           f"{answer.status} {answer.error} after {answer.took_s:.2f} s")
    # The lease runs out, the others notice in their next loop, and one wins the race.
    limit_s = settings.ttl + settings.loop_wait + 2 * settings.retry_timeout + 15
    new = _moved(bench, old, start, watch, limit_s)
    bench.report.check(f"after kill -9 of {old.name} writes go to {new.name}",
                       new is bench.cluster.leader())
    bench.haproxy.until_it_knows(new, 20)
    no_standby(bench, start)


@contextlib.contextmanager
def _agreement(bench, nodes):
    """All the while the glues say of /primary what Patroni said at most one ttl before."""
    if bench.cluster.settings.direct:
        yield
        return
    ttl_s = bench.cluster.settings.glue_cache["ttl"]
    shadows = [Shadow(node, "/primary", ttl_s) for node in nodes]
    try:
        yield
    finally:
        for shadow in shadows:
            shadow.stop()
    for shadow in shadows:
        late = shadow.late()
        worst = max((by for _, by in late), default=0.0)
        bench.report.check(f"the glue of {shadow.name} never says of /primary what is older than"
                           f" {ttl_s} s", not late and shadow.changes() > 0,
                           f"{len(late)} answers, the worst {worst:.2f} s late;"
                           f" Patroni changed its own {shadow.changes()} times")


def _moved(bench, old, start, watch, limit_s):
    """The node on which writes arrive after old; says when and how long there were none."""
    arrived = []

    def elsewhere():
        arrived[:] = [one for one in bench.writer.since(start)
                      if one.written and one.server != (old.host, old.postgres_port)]
        return arrived

    try:
        until("write on another node", elsewhere, limit_s)
    finally:
        watch.stop()
    _in_time(bench, watch, arrived[0].ended)
    for one in bench.writer.outages(start):
        bench.report.say(f"outage of {one.length:.1f} s, {one.start - start:.1f} s after the"
                         " beginning")
    if watch.at is not None:
        bench.report.say(f"{watch.node.name} was promoted after {watch.at - start:.1f} s; the first"
                         f" write arrived {arrived[0].ended - watch.at:.1f} s later")
    return next(node for node in bench.cluster.nodes
                if (node.host, node.postgres_port) == arrived[0].server)


def _in_time(bench, watch, arrived_at):
    """The glue adds its ttl to what HAProxy needs itself: `rise` good checks, `inter` apart."""
    settings = bench.cluster.settings
    if settings.direct or watch.at is None:
        return
    took_s = arrived_at - watch.at
    limit_s = RISE * INTER_S + settings.glue_cache["ttl"] + CONNECT_S
    bench.report.check(f"the first write arrived at most {limit_s:.1f} s after the promotion",
                       took_s <= limit_s, f"{took_s:.2f} s")


# What holds all the time


def no_standby(bench, start):
    attempts = bench.writer.since(start)
    served = [one for one in attempts if one.server]
    wrong = [one for one in served if one.on_standby]
    bench.report.check(
        f"none of {len(served)} connections to the write port ended on a standby", not wrong,
        ", ".join(f"{one.server[0]} after {one.began - start:.2f} s" for one in wrong[:10])
        + f" ({len(wrong)} in all)")


def no_outage(bench, start, when):
    outages = bench.writer.outages(start)
    errors = {one.error for one in bench.writer.since(start) if one.error}
    bench.report.check(f"{when}: every write arrived", not outages, f"{outages} {errors}")
    no_standby(bench, start)


# name -> (function, does it need the glue?)
CHECKS = {
    "primary": (primary, False),
    "routes": (routes, True),
    "crowds": (crowds, True),
    "contrast": (contrast, False),
    "switchover": (switchover, False),
    "kill": (kill_leader, False),
    "freeze": (freeze, False),
    "checkers": (checkers, False),
    "silent": (lease.silent_patroni, True),
    "stopped": (lease.stopped_shortly, True),
    "lost": (lease.stopped_for_good, True),
}
# Those that need an old answer: with --grace.
GRACE = ["primary", "crowds", "silent", "stopped", "checkers", "switchover", "lost"]
# Those that are run where none is named. kill is the last: it leaves a node dead.
USUAL = ["primary", "routes", "crowds", "contrast", "switchover", "kill"]
