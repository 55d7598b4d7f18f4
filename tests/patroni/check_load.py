"""A process that sends health checks: check_load.py PER_SECOND HOST:PORT [CA CERT KEY].

Each check is a connection of its own, as with HAProxy, for /primary and /replica alternately. When
stdin ends it prints a line of JSON: number of checks, their statuses, their durations.
"""

import asyncio
import json
import ssl
import subprocess
import sys
import threading
import time

LIMIT_S = 3.0


class CheckLoad:
    """Runs this file as a process for the duration of a `with` block."""

    def __init__(self, per_second, address, pki):
        files = [] if pki is None else [pki.path(name)
                                        for name in ("ca.pem", "client.pem", "client.key")]
        self.result = None
        self._process = subprocess.Popen(
            [sys.executable, "-B", __file__, str(per_second), "%s:%d" % address, *files],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self.result = json.loads(self._process.stdout.read())
        self._process.wait(10)


async def check(address, context, target, done):
    begun = time.monotonic()
    status = 0
    try:
        async with asyncio.timeout(LIMIT_S):
            reader, writer = await asyncio.open_connection(*address, ssl=context)
            try:
                writer.write(f"OPTIONS {target} HTTP/1.0\r\n\r\n".encode())
                line = await reader.readline()
                status = int(line.split()[1]) if line else 0
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, ValueError, IndexError):
        pass
    done.append((target, status, time.monotonic() - begun))


async def ask_all(per_second, address, context, ended):
    done, running = [], set()
    due = time.monotonic()
    while not ended.is_set():
        target = "/primary" if (len(done) + len(running)) % 2 else "/replica"
        task = asyncio.create_task(check(address, context, target, done))
        running.add(task)
        task.add_done_callback(running.discard)
        due = max(due + 1 / per_second, time.monotonic() - 1)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(*running)
    return done


def main():
    per_second, address, *files = sys.argv[1:]
    host, _, port = address.partition(":")
    context = None
    if files:
        context = ssl.create_default_context(cafile=files[0])
        context.load_cert_chain(*files[1:])
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    done = asyncio.run(ask_all(int(per_second), (host, int(port)), context, ended))
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
