"""Compares the names of metrics in documents, alerts and dashboard with those of the scrapes."""

import re

NAME = re.compile(r"\b(?:patroniglue_[a-z][a-z0-9_]*|process_[a-z0-9_]+)\b")
SAMPLE = re.compile(r"^([a-z_:][a-z0-9_:]*)(?:\{(.*)\})? \S+$")
LABEL = re.compile(r'([a-z_]+)="(?:[^"\\]|\\.)*"')
# The series of a histogram have its name with one of these.
SUFFIXES = ("_bucket", "_sum", "_count")


def compare(scrapes, files, table):
    """Each name in the files is scraped, and each that is scraped has its row in the table."""
    scraped = _scraped(scrapes)
    unknown = []
    for path in files:
        with open(path, encoding="utf-8") as file:
            found = set(NAME.findall(file.read()))
        unknown += [f"{path}: {name}" for name in sorted(found)
                    if _family(name, scraped) not in scraped]
    assert not unknown, "not in any scrape:\n  " + "\n  ".join(unknown)
    rows = _rows(table)
    wrong = []
    for name, (kind, labels) in sorted(scraped.items()):
        if name not in rows:
            wrong.append(f"{name} has no row")
        elif rows[name] != (kind, labels):
            wrong.append(f"{name}: {rows[name]} in the table, {(kind, labels)} in the scrapes")
    assert not wrong, f"{table}:\n  " + "\n  ".join(wrong)
    print(f"metrics: {len(scraped)} names, each with its row, and no other in {len(files)} files")


def _scraped(scrapes):
    """Type and names of labels of each name."""
    types, labels = {}, {}
    for text in scrapes:
        types.update(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        for name, pairs in filter(None, map(_sample, text.splitlines())):
            labels.setdefault(_family(name, types), set()).update(LABEL.findall(pairs))
    return {name: (kind, frozenset(labels.get(name, set()) - {"le"}))
            for name, kind in types.items() if name in labels}


def _sample(line):
    found = SAMPLE.match(line)
    return found and (found[1], found[2] or "")


def _family(name, known):
    for suffix in SUFFIXES:
        if name not in known and name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def _rows(table):
    """Type and names of labels of each name by the section "Metrics": `name` | type | labels."""
    with open(table, encoding="utf-8") as file:
        section = file.read().split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 4 or not cells[0].startswith("`"):
            continue
        labels = frozenset(re.findall(r"`([a-z_]+)`", cells[2]))
        for name in re.findall(r"`([a-z_]+)`", cells[0]):
            rows[name] = (cells[1], labels)
    return rows
