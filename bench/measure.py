"""Measures for bench/run: runs each work against each server in alternating rounds, keeps the
figures in target/bench/figures.json, and prints the table. bench/README.md says how."""

import argparse
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import peers
import report
from peers import Process, Server, StandIn

ROUTES = (
    "/primary / /read-write /master /leader /standby-leader /standby_leader /replica /read-only"
    " /sync /synchronous /async /asynchronous /quorum /read-only-sync /read-only-synchronous"
    " /read-only-quorum /health /liveness /readiness /patroni /cluster /history /metrics"
).split()
REALTIME = 10
VARIANTS = [f"/replica?lag={number}MB" for number in range(1, 65)]


class Lab:
    """What all works share: files, certificates, CPUs, servers, figures."""

    def __init__(self, options):
        self.folder = tempfile.mkdtemp(prefix="patroniglue-bench-")
        self.target, self.quick = options.target, options.quick
        self.rounds = options.rounds or (3 if options.quick else 9)
        self.seconds = options.seconds or (0.3 if options.quick else 1)
        self.priority = 0 if options.shared else REALTIME
        cpus = sorted(os.sched_getaffinity(0))
        self.load_cpu, self.server_cpu = cpus[0], cpus[-1]
        self.binaries = dict(one.split("=", 1) for one in options.binary)
        if not self.binaries:
            self.binaries = {"patroniglue": f"{self.target}/release/patroniglue"}
        self.ours = list(self.binaries)
        self.standin, self.servers, self.wrong = None, {}, 0
        self.figures = {}
        self.body = peers.write(self.path("body"), peers.body())
        self.body_away = peers.write(self.path("body-away"), peers.body(failsafe=True))
        fixed = peers.body().replace(peers.STAMP, "0" * 16).replace(peers.SEEN, "1" * 10)
        self.body_fixed = peers.write(self.path("body-fixed"), fixed)
        self.make_certificates()

    def path(self, name):
        return os.path.join(self.folder, name)

    def program(self, name):
        return os.path.join(self.target, "bench", name)

    def certificate(self, flavour):
        name = "rsa" if flavour == "rsa" else "ecdsa"
        return [self.path(f"{name}.pem"), self.path(f"{name}.key")]

    def make_certificates(self):
        """Self-signed ones of each kind, and a client's, signed by a CA."""
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        for name, key in (("ecdsa", curve), ("rsa", ["-newkey", "rsa:2048"]), ("ca", curve)):
            self.openssl("req", "-x509", *key, "-nodes", "-keyout", self.path(f"{name}.key"),
                         "-out", self.path(f"{name}.pem"), "-subj", f"/CN={name}", "-days", "30",
                         "-addext", "subjectAltName=DNS:localhost")
        request, client = self.path("client.csr"), self.path("client.pem")
        self.openssl("req", *curve, "-nodes", "-keyout", self.path("client.key"), "-out", request,
                     "-subj", "/CN=client")
        more = peers.write(self.path("client.ext"), "basicConstraints=CA:FALSE\n")
        self.openssl("x509", "-req", "-in", request, "-CA", self.path("ca.pem"), "-CAkey",
                     self.path("ca.key"), "-CAcreateserial", "-out", client, "-days", "30",
                     "-extfile", more)

    def openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    def server(self, name, flavour="plain", closes=False, standin=None):
        """A running server, kept for the next work."""
        standin = standin or self.standin
        key = (name, flavour, closes and name.startswith("floor"), standin.port)
        if key not in self.servers:
            self.servers[key] = Server(self, name, flavour, standin, closes).ready()
        return self.servers[key]

    def end_servers(self):
        for server in self.servers.values():
            server.end()
        self.servers = {}

    def load_command(self, server, **values):
        values = {"body": self.body, **values}
        if server.tls:
            values["tls"] = 1
        if server.flavour == "client":
            values.update(cert=self.path("client.pem"), key=self.path("client.key"))
        pids = ",".join(str(pid) for pid in server.pids())
        command = [self.program("load"), f"port={server.port}", f"pids={pids}"]
        return command + [f"{name}={value}" for name, value in values.items()]

    def prepare_load(self):
        peers.run_on(self.load_cpu, self.priority)

    def load(self, server, **values):
        """Runs the load generator and returns what it prints."""
        done = subprocess.run(self.load_command(server, **values), text=True,
                              capture_output=True, preexec_fn=self.prepare_load)
        if done.returncode != 0:
            raise SystemExit(f"load at {server.name} failed: {done.stderr}")
        result = json.loads(done.stdout)
        if result["wrong"]:
            self.wrong += result["wrong"]
            print(f"{server.name}, {values}: {result['wrong']} wrong\n{done.stderr}",
                  file=sys.stderr)
        if values.get("resume") and result["resumed"] < result["answers"]:
            self.wrong += result["answers"] - result["resumed"]
            print(f"{server.name}: {result['answers'] - result['resumed']} of "
                  f"{result['answers']} not resumed", file=sys.stderr)
        return result

    def holds(self, server, clients):
        """A load generator that holds open connections; communicate() ends it."""
        command = self.load_command(server, clients=clients, hold=1)
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  text=True, preexec_fn=self.prepare_load)
        if holder.stdout.readline() != "open\n":
            raise SystemExit(f"{server.name}: connections could not be opened")
        return holder

    def costs(self, work, names, flavour="plain", rounds=None, **values):
        """CPU microseconds per answer and the share of its CPU, medians of alternating rounds."""
        closes = values.get("mode") == "new"
        servers = [self.server(name, flavour, closes) for name in names]
        found = {name: [] for name in names}
        busy = {name: [] for name in names}
        for _ in range(rounds or self.rounds):
            for server in servers:
                result = self.load(server, seconds=self.seconds, **values)
                if result["answers"]:
                    found[server.name].append(result["cpu_ns"] / 1e3 / result["answers"])
                    busy[server.name].append(result["cpu_ns"] / 1e9 / result["seconds"])
        self.figures[work] = {name: median(costs) for name, costs in found.items() if costs}
        self.figures[work + " busy"] = {name: median(all) for name, all in busy.items() if all}
        spread = {name: [min(costs), max(costs)] for name, costs in found.items() if costs}
        self.figures[work + " spread"] = spread

    def plain_peers(self):
        return ["floor", "nginx", "nginx tuned", "HAProxy"] + ["varnish"] * (not self.quick)


def median(values):
    return sorted(values)[len(values) // 2]


# ---- the works of the table


def work_a(lab):
    lab.costs("a", lab.plain_peers() + lab.ours)


def takes_defer(lab, binary):
    """Whether this binary knows frontend.defer-accept."""
    path = peers.write(lab.path("check.yml"), "frontend:\n  defer-accept: true\n")
    done = subprocess.run([binary, "-check", "-config", path], capture_output=True)
    return done.returncode == 0


def work_b(lab):
    defers = [f"{name} defer" for name in lab.ours if takes_defer(lab, lab.binaries[name])]
    lab.costs("b", lab.plain_peers() + ["floor defer"] + lab.ours + defers, mode="new")


def work_c(lab):
    for kind in ("ecdsa", "rsa"):
        lab.costs(f"c {kind}", lab.plain_peers() + lab.ours, kind, mode="new", clients=8)


def work_d(lab):
    lab.costs("d", lab.plain_peers() + lab.ours, "ecdsa")


def work_e(lab):
    lab.costs("e", lab.plain_peers() + lab.ours, "ecdsa", mode="new", clients=8, resume=1)


def idle_bytes(lab, name, flavour, count):
    server = Server(lab, name, flavour, lab.standin).ready()
    first = lab.holds(server, 100)
    before = server.resident()
    more = lab.holds(server, count)
    after = server.resident()
    for holder in (more, first):
        holder.communicate()
    server.end()
    return (after - before) / count


def work_f(lab):
    for flavour in ("plain", "ecdsa", "client"):
        count = 1000 if lab.quick and flavour != "plain" else 5000
        names = lab.ours if flavour == "client" else ["floor", "nginx", "HAProxy"] + lab.ours
        figures = {name: idle_bytes(lab, name, flavour, count) for name in names}
        lab.figures[f"f {flavour}"] = figures


def first_answer(lab, name):
    """Milliseconds from the start to the first answer, and the resident bytes then."""
    server = Server(lab, name, "plain", lab.standin)
    request = b"GET /primary HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    while True:
        try:
            with socket.create_connection(("127.0.0.1", server.port), 5) as one:
                one.sendall(request)
                if one.recv(4096)[8:13] == b" 200 ":
                    break
        except OSError:
            pass
        if time.monotonic() > server.processes[-1].began + 10:
            raise SystemExit(f"{name} does not answer")
        time.sleep(0.0001)
    took = (time.monotonic() - server.processes[-1].began) * 1000
    time.sleep(0.2)
    resident = server.resident()
    server.end()
    return took, resident


def work_g(lab):
    names = ["floor", "nginx", "HAProxy"] + ["varnish"] * (not lab.quick) + lab.ours
    runs = {name: [] for name in names}
    for _ in range(lab.rounds):
        for name in names:
            runs[name].append(first_answer(lab, name))
    lab.figures["g start"] = {name: median([one[0] for one in all]) for name, all in runs.items()}
    resident = {name: median([one[1] for one in all]) for name, all in runs.items()}
    lab.figures["g resident"] = resident
    programs = {"floor": lab.program("floor"), **lab.binaries}
    programs.update(nginx="/usr/sbin/nginx", HAProxy="/usr/sbin/haproxy")
    lab.figures["g binary"] = {
        name: os.path.getsize(shutil.which(path) or path) for name, path in programs.items()
    }


def fetches_per_second(lab, server, standin, settle, seconds, **values):
    """Fetches that reach the stand-in while the load runs, after it has settled."""
    command = lab.load_command(server, seconds=settle + seconds + 0.5, **values)
    load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                            preexec_fn=lab.prepare_load)
    time.sleep(settle)
    before, began = standin.fetches(), time.monotonic()
    time.sleep(seconds)
    count, took = standin.fetches() - before, time.monotonic() - began
    result = json.loads(load.communicate()[0])
    lab.wrong += result["wrong"]
    return count / took


def work_h(lab):
    names = (["nginx", "HAProxy"] if lab.quick else lab.plain_peers()[1:]) + lab.ours
    seconds = 3 if lab.quick else 10
    lab.figures["h"] = {
        name: fetches_per_second(lab, lab.server(name), lab.standin, 1, seconds) for name in names
    }


def work_i(lab):
    slow = StandIn(lab, delay_ms=200)
    waited, oldest = {}, {}
    for name in ["nginx", "HAProxy"] + lab.ours:
        server = lab.server(name, standin=slow)
        seconds = 1.5 if lab.quick else 5
        result = lab.load(server, clients=4000, rate=4000, settle=1.5, seconds=seconds)
        waited[name] = result["waited"] / seconds
        oldest[name] = result["oldest_us"] / 1e6
        lab.figures.setdefault("i longest", {})[name] = result["longest_us"] / 1e3
    lab.figures["i waited"], lab.figures["i oldest"] = waited, oldest
    lab.end_servers()
    slow.end()


def work_j(lab):
    seconds = 3 if lab.quick else 20
    for mode in ("dcs", "away"):
        standin = StandIn(lab, away=mode == "away")
        figures = {}
        for name in lab.ours:
            server = lab.server(name, standin=standin)
            figures[name] = fetches_per_second(lab, server, standin, 2, seconds, clients=50,
                                               rate=50, body=standin.body)
        lab.figures[f"j {mode}"] = figures
        lab.end_servers()
        standin.end()


def work_k(lab):
    names = ["floor"] + lab.ours
    counts = (1, 10, 100, 1000, 10000)
    for count in counts:
        lab.costs(f"k {count} connections", names, clients=count, rate=10000)
    for count in (1, 8, 24):
        paths = peers.write(lab.path("paths"), "\n".join(ROUTES[:count]))
        lab.costs(f"k {count} routes", lab.ours, paths=paths)
    paths = peers.write(lab.path("paths"), "\n".join(VARIANTS))
    lab.costs("k 64 variants", lab.ours, paths=paths)
    rounds = 1 if lab.quick else 3
    lab.costs("k TLS kept", lab.ours, "ecdsa", rounds, clients=10000, rate=10000)


WORKS = {
    "a": work_a, "b": work_b, "c": work_c, "d": work_d, "e": work_e, "f": work_f, "g": work_g,
    "h": work_h, "i": work_i, "j": work_j, "k": work_k,
}


def arguments():
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__)
    parser.add_argument("--target", default="target", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="all works in under two minutes")
    parser.add_argument("--only", default="", help="these works, such as a,b; the others' "
                        "figures are those of the last run")
    parser.add_argument("--binary", action="append", default=[], metavar="NAME=PATH",
                        help="a build of patroniglue; the first is judged, the one called small "
                        "by the limit of the small build")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each round")
    parser.add_argument("--shared", action="store_true",
                        help="do not run server and load with a real-time priority")
    parser.add_argument("--write", action="store_true",
                        help="write bench/results.md and bench/growth.svg")
    return parser.parse_args()


def main():
    options = arguments()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    lab = Lab(options)
    if lab.priority:
        try:
            # above the load, which would not let it run; the stand-in is between them
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(3 * REALTIME))
        except PermissionError:
            print("no real-time priority: other work on the machine counts", file=sys.stderr)
            lab.priority = 0
    saved = os.path.join(lab.target, "bench", "figures.json")
    wanted = [name for name in options.only.split(",") if name] or list(WORKS)
    if options.only and os.path.exists(saved):
        with open(saved) as file:
            lab.figures = json.load(file)
    try:
        lab.standin = StandIn(lab)
        for name in wanted:
            began = time.monotonic()
            WORKS[name](lab)
            lab.end_servers()
            print(f"({name}) took {time.monotonic() - began:.0f} s", file=sys.stderr)
            with open(saved, "w") as file:
                json.dump(lab.figures, file, indent=1)
    finally:
        Process.end_all()
        shutil.rmtree(lab.folder, ignore_errors=True)
    text = report.table(lab.figures, lab.ours)
    print(text)
    if options.write:
        report.write(lab.figures, lab.ours, text)
    if lab.wrong:
        sys.exit(f"{lab.wrong} wrong answers")


if __name__ == "__main__":
    main()
