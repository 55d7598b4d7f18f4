"""Stand-ins for Patroni, whose mood a test changes, and for etcd, which grants the lease."""

import base64
import http.server
import json
import threading
import time

SYSTEM_IDENTIFIER = "7711116521634884915"
# A short loop_wait, so that the HA loop is soon seen to move.
INTERVALS = {"ttl": 30, "loop_wait": 1, "retry_timeout": 3}
PRIMARY_ROUTES = ["/", "/primary", "/read-write", "/master", "/leader"]
REPLICA_ROUTES = ["/replica"]
LEASE = 7587895443109810437
# Silent requests notice a new mood in this time.
TICK_S = 0.05


class Patroni:
    """Refuses connections until `listen`; then it is "primary", "replica" or "silent"."""

    def __init__(self, scope, tls=None):
        self.scope = scope
        self.mood = "primary"
        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), _PatroniHandler, bind_and_activate=False)
        self._server.patroni = self
        self._server.server_bind()
        self.port = self._server.server_address[1]
        if tls:
            # the handshake is left to the connection's thread
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True,
                                                  do_handshake_on_connect=False)

    def listen(self):
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, path):
        """Status and JSON."""
        if path == "/config":
            return 200, INTERVALS
        path = path.partition("?")[0]
        role = self.mood
        wrong = REPLICA_ROUTES if role == "primary" else PRIMARY_ROUTES
        return 503 if path in wrong else 200, {
            "state": "running", "role": role, "timeline": 7, "dcs_last_seen": int(time.time()),
            "database_system_identifier": SYSTEM_IDENTIFIER,
            "patroni": {"version": "4.1.5", "scope": self.scope, "name": "pg1"}}


class _PatroniHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        patroni = self.server.patroni
        while patroni.mood == "silent":
            time.sleep(TICK_S)
        status, body = patroni.answer(self.path)
        _respond(self, status, body, length=False)

    def log_message(self, *_):
        pass


class Etcd:
    """etcd's JSON gateway with the keys of a cluster whose leader is pg1."""

    def __init__(self, scope):
        member = {"state": "running", "role": "primary", "version": "4.1.5", "timeline": 7}
        values = {"leader": "pg1", "members/pg1": json.dumps(member),
                  "config": json.dumps(INTERVALS), "initialize": SYSTEM_IDENTIFIER}
        self.keys = {_base64(f"/service/{scope}/{key}"): value for key, value in values.items()}
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _EtcdHandler)
        self._server.etcd = self
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, path, body):
        """Status and JSON, as recorded in tests/fixtures/etcd."""
        header = {"cluster_id": "1", "member_id": "2", "revision": "5", "raft_term": "2"}
        if path == "/v3/kv/txn":
            keys = [one["request_range"]["key"] for one in body["success"]]
            responses = [{"response_range": self._range(key)} for key in keys]
            return 200, {"header": header, "succeeded": True, "responses": responses}
        if path == "/v3/lease/timetolive":
            ttl = INTERVALS["ttl"]
            return 200, {"header": header, "ID": body["ID"], "TTL": str(ttl - 1),
                         "grantedTTL": str(ttl)}
        return 404, {}

    def _range(self, key):
        found = {"header": {"revision": "5"}}
        if key in self.keys:
            pair = {"key": key, "create_revision": "2", "mod_revision": "2", "version": "1",
                    "value": _base64(self.keys[key]), "lease": str(LEASE)}
            found.update(kvs=[pair], count="1")
        return found


class _EtcdHandler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _respond(self, *self.server.etcd.answer(self.path, body), length=True)

    def log_message(self, *_):
        pass


def _respond(handler, status, body, length):
    """Patroni sends no length: the end of the connection is the end of the body."""
    body = json.dumps(body).encode()
    try:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        if length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
    except OSError:
        pass  # the daemon gave up


def _base64(text):
    return base64.b64encode(text.encode()).decode()
