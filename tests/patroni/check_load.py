"""A process that sends health checks: check_load.py PER_SECOND HOST:PORT TARGETS [CA CERT KEY].

Each check is a connection of its own, as with HAProxy, for the targets (separated by commas) in
turn. When stdin ends it prints a line of JSON: number of checks, their statuses, their durations.
"""

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import threading
import time

LIMIT_S = 3.0


class CheckLoad:
    """Runs this file as a process for the duration of a `with` block."""

    def __init__(self, per_second, address, targets, pki):
        self.result = None
        self._process = subprocess.Popen(
            [sys.executable, "-B", __file__, str(per_second), "%s:%d" % address,
             ",".join(targets), *(pki.client_files() if pki else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self.result = json.loads(self._process.stdout.read())
        self._process.wait(10)


def client_context(files):
    """The TLS context of a client with these files: CA, certificate, key. None without files."""
    if not files:
        return None
    context = ssl.create_default_context(cafile=files[0])
    context.load_cert_chain(*files[1:])
    return context


async def check(address, context, target):
    """The status of one check, 0 if there is none. Ends with RST, as HAProxy's checks do."""
    try:
        async with asyncio.timeout(LIMIT_S):
            reader, writer = await asyncio.open_connection(*address, ssl=context)
            try:
                writer.write(f"OPTIONS {target} HTTP/1.0\r\n\r\n".encode())
                # Patroni's answer would wait for the delayed ACK of its TLS session tickets: 40 ms
                writer.get_extra_info("socket").setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                line = await reader.readline()
                return int(line.split()[1])
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, ValueError, IndexError):
        return 0


async def check_all(per_second, address, context, targets, ended):
    done, running = [], set()

    async def one(target):
        start = time.monotonic()
        status = await check(address, context, target)
        done.append((target, status, time.monotonic() - start))

    due = time.monotonic()
    while not ended.is_set():
        task = asyncio.create_task(one(targets[(len(done) + len(running)) % len(targets)]))
        running.add(task)
        task.add_done_callback(running.discard)
        due = max(due + 1 / per_second, time.monotonic() - 1)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(*running)
    return done


def end_of_stdin():
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    return ended


def main():
    per_second, address, targets, *files = sys.argv[1:]
    host, _, port = address.partition(":")
    done = asyncio.run(check_all(int(per_second), (host, int(port)), client_context(files),
                                 targets.split(","), end_of_stdin()))
    took = sorted(seconds for _, _, seconds in done)
    statuses = {}
    for target, status, _ in done:
        key = f"{target} {status}"
        statuses[key] = statuses.get(key, 0) + 1
    print(json.dumps({"asked": len(done), "statuses": statuses,
                      "median_s": took[len(took) // 2], "slowest_s": took[-1],
                      "p99_s": took[len(took) * 99 // 100]}))


if __name__ == "__main__":
    main()
