"""HTTP requests to the nodes, an application that writes through HAProxy, a promotion watch."""

import socket
import threading
import time
from dataclasses import dataclass

import psycopg2

WRITE_EVERY_S = 0.05
# The TLS context for requests to Patroni and patroniglue; None for plain text.
SECURITY = None
# Threads that write. Attempts begin every WRITE_EVERY_S as long as fewer than this many hang.
WRITERS = 24


@dataclass(frozen=True)
class Answer:
    status: int  # 0: no response; see error
    headers: dict
    body: bytes
    error: str
    took_s: float


def ask(address, method, target, timeout_s=3.0, plain=False):
    """Sends one request on a new connection and reads until the server closes it."""
    start = time.monotonic()

    def answer(status, headers, body, error):
        return Answer(status, headers, body, error, time.monotonic() - start)

    host, port = address
    head = f"{method} {target} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    try:
        with _secured(socket.create_connection(address, timeout_s), host, plain) as connection:
            connection.sendall(head.encode())
            received = b""
            while True:
                left = timeout_s - (time.monotonic() - start)
                if left <= 0:
                    return answer(0, {}, b"", "timed out")
                connection.settimeout(left)
                piece = connection.recv(65536)
                if not piece:
                    break
                received += piece
    except OSError as problem:
        return answer(0, {}, b"", str(problem) or type(problem).__name__)
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) < 2 or not words[0].startswith("HTTP/1."):
        return answer(0, {}, b"", f"no status line: {first!r}")
    headers = {name.strip().lower(): value.strip()
               for name, _, value in (line.partition(":") for line in lines)}
    return answer(int(words[1]), headers, body, "")


def _secured(connection, host, plain):
    if SECURITY is None or plain:
        return connection
    try:
        return SECURITY.wrap_socket(connection, server_hostname=host)
    except OSError:
        connection.close()
        raise


def connect(host, port, timeout_s=2):
    return psycopg2.connect(
        host=host, port=port, user="postgres", dbname="postgres", connect_timeout=timeout_s,
        options="-c statement_timeout=1000 -c synchronous_commit=off")


@dataclass(frozen=True)
class Attempt:
    """One connection to the write port."""
    began: float
    ended: float
    server: tuple  # host and port of the PostgreSQL that answered, or None
    on_standby: bool
    error: str  # empty: the row was written

    @property
    def written(self):
        return not self.error


@dataclass(frozen=True)
class Outage:
    start: float
    length: float


class Writer:
    """Every WRITE_EVERY_S: connects to the write port, queries the server's role, writes a row."""

    def __init__(self, address):
        self.address = address
        self._attempts = []
        self._stop = threading.Event()
        self._turn = threading.Lock()
        self._next = time.monotonic()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(WRITERS)]

    def start(self):
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(5)

    def since(self, start):
        """Attempts that began at this time or later, ordered by their start."""
        return sorted((one for one in list(self._attempts) if one.began >= start),
                      key=lambda one: one.began)

    def outages(self, start):
        """Times from an attempt that failed to the end of the next one that succeeded."""
        found, failed = [], None
        for one in self.since(start):
            if failed is None and not one.written:
                failed = one
            elif failed is not None and one.written:
                found.append(Outage(failed.began, one.ended - failed.began))
                failed = None
        if failed is not None:
            found.append(Outage(failed.began, time.monotonic() - failed.began))
        return found

    def _work(self):
        while not self._stop.is_set():
            with self._turn:  # starts one attempt every WRITE_EVERY_S
                self._stop.wait(max(0.0, self._next - time.monotonic()))
                self._next = max(self._next + WRITE_EVERY_S, time.monotonic())
            if not self._stop.is_set():
                self._attempts.append(self._attempt())

    def _attempt(self):
        began = time.monotonic()
        server, on_standby, error = None, False, ""
        try:
            connection = connect(*self.address)
            try:
                connection.autocommit = True
                cursor = connection.cursor()
                # A session never changes its role, because PostgreSQL restarts to become a
                # standby: this query's result holds for the whole connection.
                cursor.execute("select pg_is_in_recovery(), host(inet_server_addr()),"
                               " inet_server_port()")
                on_standby, *server = cursor.fetchone()
                cursor.execute("insert into writes default values")
            finally:
                connection.close()
        except psycopg2.Error as problem:
            error = str(problem).strip() or type(problem).__name__
        return Attempt(began, time.monotonic(), server and tuple(server), on_standby, error)


class PromotionWatch(threading.Thread):
    """Polls standbys directly, without HAProxy, and records when one is promoted."""

    def __init__(self, nodes):
        super().__init__(daemon=True)
        self.node = None
        self.at = None
        self._connections = [(node, node.connect()) for node in nodes]
        self._done = threading.Event()
        self.start()

    def _query(self, node, connection):
        try:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("select pg_is_in_recovery()")
            if not cursor.fetchone()[0]:
                self.node, self.at = node, time.monotonic()
        except psycopg2.Error:
            pass  # a node that is shutting down is not promoted

    def run(self):
        while self.node is None and not self._done.wait(WRITE_EVERY_S):
            for node, connection in self._connections:
                self._query(node, connection)

    def stop(self):
        self._done.set()
        self.join(5)
        for _, connection in self._connections:
            connection.close()
