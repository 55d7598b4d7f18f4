"""HAProxy in front of the cluster: a write port, a read port, and its view of the servers."""

import csv
import socket
import threading
import time
from dataclasses import dataclass

import supervisor
from waiting import free_port, wait_for

# The checks of Patroni's documentation, but every second. No retries: a refused connection is an
# error at once, so that an outage is measured to a tenth of a second.
#
# observe layer4: refused connections take a server out as well. Without it connections end on a
# standby, with Patroni checked directly too (in 3 of 8 switchovers): a demoted leader's PostgreSQL
# is back as a standby 2.4 s after its Patroni's first 503, and three checks at 1 s can take 3 s.
# Between the two nothing listens there, which observe sees. A wrong 200 is still detected: two of
# them after that bring the server up again.
INTER_S, RISE = 1, 2
OBSERVE = "default-server observe layer4 error-limit 3 on-error mark-down"
CONFIGURATION = """\
global
    nbthread 1
    maxconn 500
    stats socket {socket} mode 600 level admin
defaults
    mode tcp
    retries 0
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    default-server inter {inter}s fall 3 rise {rise} on-marked-down shutdown-sessions
    {observe}
listen write
    bind {host}:{write}
    option httpchk OPTIONS /primary
{servers}
listen read
    bind {host}:{read}
    option httpchk OPTIONS /replica
{servers}
"""


@dataclass(frozen=True)
class Server:
    """One line of HAProxy's statistics."""
    up: bool
    checked: bool  # the latest check got an answer, good or bad
    failed_checks: int  # while the server was up
    times_down: int


class HAProxy:
    def __init__(self, cluster, name="haproxy", direct=False, observe=True):
        self.cluster = cluster
        self.direct = direct  # checks Patroni instead of patroniglue
        self.observe = observe
        self.process = None
        self.directory = f"{cluster.settings.directory}/{name}"
        self.socket = f"{self.directory}/stats"
        self.host = f"{cluster.network}.2"
        self.write = (self.host, free_port(self.host))
        self.read = (self.host, free_port(self.host))

    def start(self):
        self.cluster.make_directory(self.directory)
        file = f"{self.directory}/haproxy.cfg"
        with open(file, "w", encoding="utf-8") as output:
            output.write(CONFIGURATION.format(
                socket=self.socket, host=self.host, write=self.write[1], read=self.read[1],
                inter=INTER_S, rise=RISE, observe=OBSERVE if self.observe else "",
                servers="\n".join(map(self._server_line, self.cluster.nodes))))
        self.process = supervisor.spawn(["haproxy", "-db", "-f", file], f"{self.directory}/log",
                                        self.directory)
        # HAProxy starts with every server UP, until the first check.
        return self.wait_for_leader(self.cluster.leader(), 15)

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def _server_line(self, node):
        port = node.patroni_port if self.direct else node.patroniglue_port
        line = f"    server {node.name} {node.host}:{node.postgres_port} check port {port}"
        pki = self.cluster.pki
        if pki is not None:
            line += f" check-ssl verify required ca-file {pki.path('ca.pem')}"
            line += f" crt {pki.path('client-both.pem')}"
        return line

    def servers(self):
        """Returns {(port's name, node's name): Server}."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(self.socket)
            connection.sendall(b"show stat\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        # A star before the latest check's result: the next check is in flight.
        return {(row["# pxname"], row["svname"]): Server(
                    row["status"].startswith("UP"),
                    row["check_status"].removeprefix("* ") in ("L7OK", "L7STS"),
                    int(row["chkfail"]), int(row["chkdown"]))
                for row in csv.DictReader(text.splitlines()) if row["type"] == "2"}

    def up(self, port):
        return sorted(name for (where, name), server in self.servers().items()
                      if where == port and server.up)

    def watch_for_down(self, port, node):
        """Watches a server until it is no longer up. Returns a list that gets the time.time() of
        that, and an event that ends the watch."""
        seen, done = [], threading.Event()

        def look():
            while not seen and not done.wait(0.05):
                if node.name not in self.up(port):
                    seen.append(time.time())

        threading.Thread(target=look, daemon=True).start()
        return seen, done

    def wait_for_leader(self, leader, limit_s):
        """Waits until the write port leads only to this leader and the read port to the others."""
        replicas = sorted(node.name for node in self.cluster.others(leader))

        def knows():
            return (self.up("write") == [leader.name] and self.up("read") == replicas
                    and all(one.checked for one in self.servers().values() if one.up))
        return wait_for(f"view of HAProxy with leader {leader.name}", knows, limit_s)
