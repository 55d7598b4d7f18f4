"""A process that polls statuses: pollers.py PERIOD_S TARGET HOST:PORT,HOST:PORT... [CA CERT KEY].

At each address at most one request is in flight, so that polling takes at most one of Patroni's
workers. When stdin ends the process prints a line of JSON: {address: [[asked, answered, status],
...]}, by the wall clock.
"""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass

from check_load import check, client_context, end_of_stdin


@dataclass(frozen=True)
class Sample:
    """One answer, with the wall clock's times before and after it. Status 0: none."""
    asked: float
    answered: float
    status: int


class Pollers:
    """Runs this file as a process for the duration of a `with` block."""

    def __init__(self, period_s, target, addresses, pki):
        self.samples = {}
        self._process = subprocess.Popen(
            [sys.executable, "-B", __file__, str(period_s), target,
             ",".join("%s:%d" % address for address in addresses),
             *(pki.client_files() if pki else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        self._process.stdout.readline()  # it polls
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        for address, samples in json.loads(self._process.stdout.read()).items():
            self.samples[parse(address)] = [Sample(*one) for one in samples]
        self._process.wait(10)


def late(direct, through, ttl_s):
    """(seconds since the first request, its minimum lateness) of each late answer of patroniglue.

    Late is an answer that Patroni itself, asked directly, gave at no time in the ttl before the
    request.
    """
    found = []
    for one in through:
        since = one.asked - ttl_s
        # Patroni's last answer before that time held until its next one.
        held = [own for own in direct if own.asked < since][-1:]
        within = [own for own in direct if since <= own.asked <= one.answered]
        # Patroni may have changed its answer after our last request and given it to patroniglue
        # first: then our next request shows it.
        after = [own for own in direct if own.asked > one.answered][:1]
        good = one.status == 200
        if held and all((own.status == 200) != good for own in held + within + after):
            same = [own.answered for own in direct
                    if own.asked < since and (own.status == 200) == good]
            found.append((one.asked - direct[0].asked, since - max(same, default=0.0)))
    return found


def changes(samples):
    """How often these changed from or to 200."""
    return sum((one.status == 200) != (other.status == 200)
               for one, other in zip(samples, samples[1:]))


def parse(address):
    host, _, port = address.partition(":")
    return host, int(port)


async def poll(period_s, target, address, context, samples, ended):
    due = time.time()
    while not ended.is_set():
        asked = time.time()
        status = await check(parse(address), context, target)
        samples.append((asked, time.time(), status))
        due = max(due + period_s, time.time())
        await asyncio.sleep(due - time.time())


async def poll_all(period_s, target, addresses, context, ended):
    samples = {address: [] for address in addresses}
    print("polling", flush=True)
    await asyncio.gather(*(poll(period_s, target, address, context, samples[address], ended)
                           for address in addresses))
    return samples


def main():
    period_s, target, addresses, *files = sys.argv[1:]
    print(json.dumps(asyncio.run(poll_all(
        float(period_s), target, addresses.split(","), client_context(files), end_of_stdin()))))


if __name__ == "__main__":
    main()
