"""The table and the picture of bench/run, from its figures."""

import os
import platform
import re
import subprocess

COLUMNS = ["floor", "nginx", "nginx tuned", "HAProxy", "varnish"]
# The work, its name, the peer that it is compared with, and the ratio to reach.
RATIOS = [
    ("a", "(a) check on a kept connection, 64 clients", "floor", 1.05),
    ("b", "(b) check on a new connection", "floor", 1.05),
    ("c ecdsa", "(c) full TLS 1.3 handshake, one check; ECDSA P-256", "nginx", 0.42),
    ("c rsa", "(c) the same, RSA 2048", "nginx", 0.70),
    ("d", "(d) check on a kept TLS connection", "floor", 0.85),
    ("e", "(e) TLS 1.3 resumed, one check", "nginx", 0.48),
]
# The work, its name, how a figure is shown, and the limit.
LIMITS = [
    ("f plain", "(f) bytes per idle connection", "{:,.0f}", 140),
    ("f ecdsa", "(f) the same, TLS", "{:,.0f}", 3600),
    ("f client", "(f) the same, TLS with a client certificate", "{:,.0f}", 4000),
    ("g resident", "(g) resident MiB without clients", "{:.1f}", 3.5),
    ("g start", "(g) ms from start to first answer", "{:.1f}", 6),
    ("g binary", "(g) KiB of the binary", "{:,.0f}", 2800),
    ("h", "(h) fetches per second under (a)", "{:.1f}", 1.4),
    ("i waited", "(i) fetch takes 200 ms: of 4,000 checks waited over 20 ms", "{:,.0f}", 0),
    ("i oldest", "(i) the same, oldest answer in s", "{:.2f}", 1.0),
]
SCALE = {"g resident": 2**20, "g binary": 2**10}


def mark(reached):
    return "ok" if reached else "**missed**"


def row(*cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def ratio_rows(figures, ours):
    for work, name, peer, goal in RATIOS:
        found = figures.get(work)
        if not found:
            continue
        cells = [shown(found, column, "{:.1f}") for column in COLUMNS + ours]
        ratios = [found[one] / found[peer] for one in ours if one in found and peer in found]
        if not ratios:
            continue
        text = " / ".join(f"{ratio:.2f}" for ratio in ratios)
        cells += [f"{text} {peer}", f"≤ {goal:.2f}", mark(round(ratios[0], 2) <= goal)]
        yield row(name, *cells)
        if work == "b":
            yield from defer_row(found, ours)


def defer_row(found, ours):
    """The option is compared with the floor without it."""
    late = {one.removesuffix(" defer"): cost for one, cost in found.items() if "defer" in one}
    cells = [shown(late, column, "{:.1f}") for column in COLUMNS + ours]
    verdict = ["", "≤ 0.75", "no such key"]
    knows = [one for one in ours if one in late]
    if knows:
        ratio = late[knows[0]] / found["floor"]
        verdict = [f"{ratio:.2f} floor without it", "≤ 0.75", mark(round(ratio, 2) <= 0.75)]
    yield row("(b) with TCP_DEFER_ACCEPT", *cells, *verdict)


def shown(found, name, form, scale=1):
    return form.format(found[name] / scale) if name in found else ""


def limit_rows(figures, ours):
    for work, name, form, limit in LIMITS:
        found = figures.get(work)
        if not found:
            continue
        scale = SCALE.get(work, 1)
        cells = [shown(found, column, form, scale) for column in COLUMNS + ours]
        judged = "small" if work.startswith("g ") and "small" in ours else ours[0]
        value = found.get(judged)
        digits = int(form[-3]) if form[-3].isdigit() else 0
        reached = value is not None and round(value / scale, digits) <= limit
        yield row(name, *cells, "", f"≤ {limit:,}", mark(reached))


def failsafe_rows(figures, ours):
    near, away = figures.get("j dcs"), figures.get("j away")
    if not near or not away:
        return
    cells = [""] * len(COLUMNS)
    yield row("(j) fetches per second at 50 checks, DCS there", *cells,
              *[shown(near, one, "{:.1f}") for one in ours], "", "", "")
    same = abs(away[ours[0]] - near[ours[0]]) <= 0.3
    yield row("(j) the same, DCS away (failsafe mode)", *cells,
              *[shown(away, one, "{:.1f}") for one in ours], "", "the same", mark(same))


def growth_rows(figures, ours):
    """CPU per check as connections, routes and variants grow."""
    ends = [("connections", ["1", "10", "100", "1000", "10000"]), ("routes", ["1", "8", "24"])]
    for what, counts in ends:
        first = figures.get(f"k {counts[0]} {what}")
        if not first:
            continue
        for count in counts:
            found = figures[f"k {count} {what}"]
            growth = found[ours[0]] / first[ours[0]]
            cells = [shown(found, column, "{:.1f}") for column in COLUMNS + ours]
            text, limit = f"{growth:.2f} of {counts[0]}", 1.1
            if "floor" in found:
                # what the kernel needs for more sockets is not the server's
                kernel = found["floor"] / first["floor"]
                text, limit = f"{text}, floor {kernel:.2f}", 1.1 * max(1, kernel)
            yield row(f"(k) {int(count):,} {what} in use", *cells, text, f"≤ {limit:.2f}",
                      mark(round(growth, 2) <= round(limit, 2)))
    found, first = figures.get("k 64 variants"), figures.get("k 1 routes")
    if found and first:
        growth = found[ours[0]] / first[ours[0]]
        cells = [shown(found, column, "{:.1f}") for column in COLUMNS + ours]
        yield row("(k) 64 variants in use", *cells, f"{growth:.2f} of 1 route", "≤ 1.10",
                  mark(round(growth, 2) <= 1.1))


def projection(figures, ours):
    """10,000 load balancers that ask once a second: the share of one CPU."""
    lines = []
    kinds = [("k TLS kept", "kept TLS connections, measured"),
             ("c ecdsa", "a full handshake for each check, projected from (c)"),
             ("e", "a resumed handshake for each check, projected from (e)")]
    for work, name in kinds:
        found = figures.get(work)
        if not found:
            continue
        for one in [name for name in ours if name in found]:
            share = found[one] * 10000 / 1e6
            lines.append(row(name, one, f"{found[one]:.1f}", f"{share * 100:.0f} %"))
    if not lines:
        return ""
    head = ["", "10,000 load balancers, each with one check a second over TLS (ECDSA P-256):", ""]
    head += [row("", "", "µs per check", "of one CPU per node"), "|---|---|---|---|"]
    return "\n".join(head + lines) + "\n"


def machine():
    with open("/proc/cpuinfo") as file:
        text = file.read()
    model = re.search(r"model name\s*: (.*)", text)
    name = model.group(1) if model else platform.machine()
    ifma = "with" if "avx512ifma" in text else "without"
    commands = (["nginx", "-v"], ["haproxy", "-v"], ["varnishd", "-V"], ["hitch", "--version"],
                ["openssl", "version"])
    versions = [version(command) for command in commands]
    return f"{name} {ifma} AVX-512 IFMA, Linux {platform.release()}; " + ", ".join(versions)


def version(command):
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"\d+\.\d+[.\d]*", done.stdout + done.stderr)
    return f"{command[0]} {found.group() if found else '?'}"


def table(figures, ours):
    head = ["work", *COLUMNS, *ours, "ratio", "to reach", ""]
    lines = [row(*head), "|" + "---|" * len(head)]
    for rows in (ratio_rows, limit_rows, failsafe_rows, growth_rows):
        lines += rows(figures, ours)
    busy = [f"({work}) {share[ours[0]] * 100:.0f} %" for work, *_ in RATIOS
            if (share := figures.get(f"{work} busy")) and ours[0] in share]
    lines += ["", "The server's share of its CPU, patroniglue: " + ", ".join(busy) + ".",
              f"Machine: {machine()}."]
    return "\n".join(lines) + "\n" + projection(figures, ours)


def write(figures, ours, text):
    folder = os.path.dirname(__file__)
    with open(os.path.join(folder, "results.md"), "w") as file:
        file.write("Written by `bench/run --write`; `bench/README.md` says what each row is.\n")
        file.write("CPU microseconds of the server per check, unless the row says otherwise.\n\n")
        file.write(text)
    with open(os.path.join(folder, "growth.svg"), "w") as file:
        file.write(growth(figures, ours))


def growth(figures, ours):
    """CPU per check over the number of open connections, as SVG."""
    counts = [1, 10, 100, 1000, 10000]
    series = [(name, [figures.get(f"k {count} connections", {}).get(name) for count in counts])
              for name in ["floor"] + ours]
    series = [(name, values) for name, values in series if None not in values]
    top = max([value for _, values in series for value in values] + [1]) * 1.15
    colours = ["#888888", "#0b6bcb", "#c2410c", "#15803d"]
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 360" width="640" '
             'height="360" font-family="sans-serif" font-size="13">',
             "<title>CPU per check over the number of open connections</title>",
             '<rect width="640" height="360" fill="#ffffff"/>',
             '<text x="60" y="24" font-size="15">CPU microseconds per check, 10,000 checks a '
             "second, over open connections</text>"]
    across = [80 + 120 * step for step in range(len(counts))]
    up = lambda value: 310 - value / top * 260
    for count, x in zip(counts, across):
        parts.append(f'<text x="{x}" y="332" text-anchor="middle">{count:,}</text>')
    for step in range(5):
        value = top * step / 4
        y = up(value)
        parts.append(f'<line x1="60" x2="600" y1="{y:.0f}" y2="{y:.0f}" stroke="#dddddd"/>')
        parts.append(f'<text x="52" y="{y + 4:.0f}" text-anchor="end">{value:.0f}</text>')
    for (name, values), colour in zip(series, colours):
        points = " ".join(f"{x},{up(value):.1f}" for x, value in zip(across, values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" '
                     'stroke-width="2"/>')
        parts.append(f'<text x="{across[-1] - 4}" y="{up(values[-1]) - 8:.0f}" fill="{colour}" '
                     f'text-anchor="end">{name}</text>')
    return "\n".join(parts + ["</svg>"]) + "\n"
