"""The agent port, seen by a real HAProxy: what its statistics say in each state of the node.

The health check asks for /health, which a primary passes as well: only the agent's line takes the
server out, unless the health check fails."""

import csv
import io
import json
import signal
import socket
import socketserver
import sys
import threading
import time

from daemon import Process, free_port, wait_for
from standins import Patroni

AGENT_INTER_S = 1
# Two agent checks, and cache.ttl, for which the previous answer is served.
LIMIT_S = 2 * AGENT_INTER_S + 1
# With a silent Patroni a check waits for backend.timeout as well, and three of them have to fail.
LIMIT_SILENT_S = 10
HAPROXY = """
global
    stats socket {work}/stats.sock mode 600 level user
defaults
    mode tcp
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    timeout check 3s
listen read
    bind 127.0.0.1:{front}
    option httpchk OPTIONS /health
    http-check expect status 200
    default-server inter 500ms fall 3 rise 1
    server pg1 127.0.0.1:{server} check port {checks} agent-check agent-port {agent} agent-inter {inter}s
"""


class Echo(socketserver.BaseRequestHandler):
    """A session of PostgreSQL, for which any bytes will do."""

    def handle(self):
        while data := self.request.recv(100):
            self.request.sendall(data)


class Glue:
    """The daemon, started as often as needed on the same ports."""

    def __init__(self, binary, work, patroni):
        self.binary, self.work = binary, work
        self.config = {
            "frontend": {"host": "127.0.0.1", "port": free_port()},
            "backend": {"host": "127.0.0.1", "port": patroni.port, "timeout": 1},
            "cache": {"ttl": 1, "grace": 60},
            "agent": {"port": free_port(), "route": "/replica"},
        }
        self.process = None

    def start(self):
        self.write()
        self.process = Process([self.binary, "-config", self.file()], f"{self.work}/glue.log")

    def write(self):
        with open(self.file(), "w", encoding="utf-8") as file:
            json.dump(self.config, file)  # JSON is YAML

    def file(self):
        return f"{self.work}/glue.yml"


def state(work):
    """The state of the server, as the statistics page shows it."""
    with socket.socket(socket.AF_UNIX) as stats:
        stats.connect(f"{work}/stats.sock")
        stats.sendall(b"show stat\n")
        text = b""
        while part := stats.recv(65536):
            text += part
    rows = csv.DictReader(io.StringIO(text.decode().removeprefix("# ")))
    return next(row["status"] for row in rows if row["svname"] == "pg1")


def main(binary, work):
    patroni = Patroni("main")
    patroni.mood = "replica"
    patroni.listen()
    glue = Glue(binary, work, patroni)
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    front = free_port()
    with open(f"{work}/haproxy.cfg", "w", encoding="utf-8") as file:
        file.write(HAPROXY.format(
            work=work, front=front, server=server.server_address[1], inter=AGENT_INTER_S,
            checks=glue.config["frontend"]["port"], agent=glue.config["agent"]["port"]))
    glue.start()
    haproxy = Process(["haproxy", "-db", "-f", f"{work}/haproxy.cfg"], f"{work}/haproxy.log")
    try:
        play(work, patroni, glue, front)
    except AssertionError:
        print(f"the state is {state(work)}")
        raise
    finally:
        haproxy.close()
        glue.process.close()


def play(work, patroni, glue, front):
    def expect(what, wanted, limit_s=LIMIT_S):
        wait_for(f"{wanted} after: {what}", lambda: state(work) == wanted, limit_s)
        print(f"{what}: {wanted}")

    wait_for("HAProxy", lambda: state(work) == "UP")
    patroni.mood = "primary"
    expect("promotion", "DOWN (agent)")
    patroni.mood = "replica"
    expect("demotion", "UP")
    drain(glue, front, expect)
    patroni.mood = "silent"
    end = time.monotonic() + LIMIT_SILENT_S
    while time.monotonic() < end:
        assert state(work) == "UP", "stale answers keep the server"
        time.sleep(0.1)
    print("frozen, with grace: UP")
    patroni.mood = "replica"
    glue.config["cache"]["grace"] = 0
    glue.write()
    glue.process.signal(signal.SIGHUP)
    patroni.mood = "silent"
    wait_for("DOWN when frozen without grace",
             lambda: state(work).startswith("DOWN"), LIMIT_SILENT_S)
    print(f"frozen, without grace: {state(work)}")
    patroni.mood = "replica"
    expect("recovery", "UP", LIMIT_SILENT_S)
    glue.process.close()
    glue.start()
    expect("a restart of patroniglue", "UP")
    glue.process.signal(signal.SIGKILL)
    # the agent's last line was up: the health check is the safeguard
    wait_for("DOWN after kill -9", lambda: state(work).startswith("DOWN"), LIMIT_S)
    print("kill -9: DOWN by the health check, although the agent's last line was up")
    glue.process.close()
    glue.start()
    expect("the start after it", "UP")


def drain(glue, front, expect):
    """A drain keeps the sessions that are open."""
    with socket.create_connection(("127.0.0.1", front), timeout=2) as session:
        def talks():
            session.sendall(b"still here")
            return session.recv(100) == b"still here"

        assert talks(), "before the drain"
        glue.process.signal(signal.SIGUSR1)
        expect("SIGUSR1", "DRAIN (agent)")
        assert talks(), "while the node is drained"
        with socket.create_connection(("127.0.0.1", front), timeout=2) as newcomer:
            assert newcomer.recv(100) == b"", "no new session"
        glue.process.signal(signal.SIGUSR2)
        expect("SIGUSR2", "UP")
        assert talks(), "after the drain"
    print("an open session survived the drain")


main(*sys.argv[1:])
