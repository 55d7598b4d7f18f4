"""A process that holds connections of misbehaving clients: bad_clients.py KIND COUNT HOST:PORT ...

Keeps COUNT connections to each address: one that the server closes is replaced REPLACE_AFTER_S
later. Prints "ready" once all have been connected, and a line of counts when stdin ends.
"""

import resource
import selectors
import socket
import ssl
import subprocess
import sys
import time

REPLACE_AFTER_S = 0.25
READY_WITHIN_S = 15.0
TICK_S = 0.1
# kind -> (sent once connected, then sent one byte a second)
KINDS = {
    "silent": (b"", b""),
    "half-sent": (b"GET /pri", b""),
    "dripping": (b"", b"GET /primary HTTP/1.1\r\nHost: drip\r\nX-Long: " + b"x" * 4000),
}
# With TLS also: half of a ClientHello; a complete handshake and then silence.
TLS_KINDS = ("half-hello", "shaken")


class BadClients:
    """Runs this file as a process for the duration of a `with` block."""

    def __init__(self, kind, count, addresses):
        self.what = f"{count} {kind}"
        self.counts = ""
        self._process = subprocess.Popen(
            [sys.executable, "-B", __file__, kind, str(count)]
            + [f"{host}:{port}" for host, port in addresses],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        reply = self._process.stdout.readline().strip()
        if reply != "ready":
            self.__exit__()
            raise RuntimeError(f"{self.what} clients did not connect: {reply}")
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self.counts = self._process.stdout.read().strip()
        self._process.wait(10)


def kinds(tls):
    return (*KINDS, *TLS_KINDS) if tls else tuple(KINDS)


def trusting_context():
    """Verifies nothing. Made once, because making one costs more than a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Handshake:
    """A client's TLS handshake without a socket: bytes in, bytes out."""

    CONTEXT = trusting_context()

    def __init__(self):
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = self.CONTEXT.wrap_bio(self._incoming, self._outgoing)

    def advance(self, received=b""):
        self._incoming.write(received)
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()


class Client:
    def __init__(self, kind, address, phase):
        opening, drip = KINDS.get(kind, (b"", b""))
        self.kind = kind
        self.handshake = None
        self.address = address
        self.opening = opening
        self.drip = drip
        self.phase = phase  # the tick of each second at which it sends a byte
        self.dripped = 0
        self.connected = False
        self.socket = None

    def connect(self):
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.dripped = 0
        self.connected = False
        self.socket.connect_ex(self.address)

    def established(self):
        """Handles the end of the connect. Returns whether the connection is usable."""
        if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return False
        self.connected = True
        opening = self.opening
        if self.kind in TLS_KINDS:
            self.handshake = Handshake()
            opening = self.handshake.advance()
            if self.kind == "half-hello":
                self.handshake, opening = None, opening[:len(opening) // 2]
        return not opening or self._send(opening)

    def send_byte(self):
        byte = self.drip[self.dripped:self.dripped + 1]
        self.dripped += 1
        return not byte or self._send(byte)

    def _send(self, data):
        try:
            self.socket.send(data)
            return True
        except OSError:
            return False

    def is_closed(self):
        try:
            received = self.socket.recv(4096)  # an error response is discarded
            if received and self.handshake:
                answer = self.handshake.advance(received)
                return bool(answer) and not self._send(answer)
            return not received
        except ssl.SSLError:
            return True
        except BlockingIOError:
            return False
        except OSError:
            return True


class Loop:
    def __init__(self, clients):
        self.clients = clients
        self.selector = selectors.DefaultSelector()
        self.replacements = []  # (when, client), ordered by time
        self.made = self.closed = self.refused = 0
        for client in clients:
            self.connect(client)

    def connect(self, client):
        client.connect()
        self.selector.register(client.socket, selectors.EVENT_WRITE, client)

    def replace_later(self, client):
        self.selector.unregister(client.socket)
        client.socket.close()
        client.connected = False
        self.replacements.append((time.monotonic() + REPLACE_AFTER_S, client))

    def turn(self):
        for key, _ in self.selector.select(TICK_S):
            client = key.data
            if client is None:
                return False  # stdin has ended
            if client.connected:
                if client.is_closed():
                    self.closed += 1
                    self.replace_later(client)
            elif client.established():
                self.made += 1
                self.selector.modify(client.socket, selectors.EVENT_READ, client)
            else:
                self.refused += 1
                self.replace_later(client)
        while self.replacements and self.replacements[0][0] <= time.monotonic():
            self.connect(self.replacements.pop(0)[1])
        return True

    def drip(self, phase):
        for client in self.clients:
            if client.connected and client.drip and client.phase == phase:
                if not client.send_byte():
                    self.closed += 1
                    self.replace_later(client)


def main():
    kind, count, *addresses = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    addresses = [(host, int(port)) for host, _, port in (one.partition(":") for one in addresses)]
    loop = Loop([Client(kind, address, number % round(1 / TICK_S))
                 for number in range(int(count)) for address in addresses])
    loop.selector.register(sys.stdin, selectors.EVENT_READ, None)
    announced, phase, due = False, 0, time.monotonic()
    give_up = due + READY_WITHIN_S
    while loop.turn():
        if not announced and loop.made >= len(loop.clients):
            announced = True
            print("ready", flush=True)
        if not announced and time.monotonic() > give_up:
            break
        if time.monotonic() >= due:
            loop.drip(phase)
            phase, due = (phase + 1) % round(1 / TICK_S), due + TICK_S
    print(f"{loop.made} connections made, {loop.closed} closed by the server,"
          f" {loop.refused} refused")


if __name__ == "__main__":
    main()
