// The status page: asks for /status once a second and shows the answer. It changes nothing.
"use strict";

const ASK_MS = 1000;
const ABANDON_MS = 2000;
// An older status must not look current.
const CURRENT_MS = 1500;
const TEXT_MAX = 300;
const BRIEF_MAX = 40;
const LEADER_PATHS = ["/primary", "/", "/read-write", "/master", "/leader"];
const REPLICA_PATHS = ["/replica", "/read-only"];
const SERIES = [
  ["requests", "Checks"],
  ["fetches", "Fetches"],
  ["stale", "Stale answers"],
  ["failed", "Failed answers"],
];
const ROLES = {
  primary: "the primary", replica: "a replica", standby_leader: "the standby leader",
};
const SOURCES = { patroni: "Patroni's answers", dcs: "the DCS witness" };

const page = (id) => document.getElementById(id);

let report = null;
let heardAt = performance.now();
let hasFailed = false;
let isAsking = false;
let timer = 0;

async function ask() {
  if (isAsking || document.hidden) return;
  isAsking = true;
  const start = performance.now();
  const answer = await fetchStatus();
  isAsking = false;
  hasFailed = !answer;
  clearTimeout(timer);
  timer = setTimeout(ask, Math.max(0, ASK_MS - (performance.now() - start)));
  if (answer) {
    report = answer;
    draw();
    heardAt = performance.now();
  }
  watch();
}

async function fetchStatus() {
  try {
    const signal = AbortSignal.timeout(ABANDON_MS);
    const response = await fetch("/status", { cache: "no-store", signal });
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

// Says for how long nothing was heard, and greys the page.
function watch() {
  const silentMs = performance.now() - heardAt;
  const isLost = hasFailed || silentMs > CURRENT_MS;
  if (!isLost && page("silence").hidden) return;
  const count = Math.max(1, Math.floor(silentMs / 1000));
  text("silence-text", `This page has heard nothing from patroniglue for ${count} s.`);
  page("silence").hidden = !isLost;
  drawHead(isLost);
}

function draw() {
  page("all").hidden = false;
  drawHead(false);
  drawPatroni(report.patroni ?? {});
  drawLease(report.lease ?? {});
  drawRoutes(report.routes ?? []);
  drawChanges(report.changes ?? []);
  drawRates(report.rates ?? {});
  drawDaemon(report.clients ?? {}, report.listening ?? {});
}

function drawHead(isLost) {
  if (!report) return;
  const level = isLost ? "unknown" : levelOf();
  const node = report.node;
  const name = node ? (node.name ?? "This node") : "";
  const role = node ? roleOf(node, isLost) : "Nothing is known about this node yet.";
  const balancers = balancersOf(isLost);
  text("name", name);
  text("role", role);
  text("balancers", balancers);
  const facts = node && [
    node.scope && `cluster ${brief(node.scope)}`,
    node.state && brief(node.state),
    known(node.timeline) && `timeline ${node.timeline}`,
    node.since && `${brief(node.role)} since ${clock(node.since)} (${age(node.since)})`,
    node.patroni_version && `Patroni ${brief(node.patroni_version)}`,
  ];
  list("facts", facts ?? []);
  document.body.className = level + (isLost ? " lost" : "");
  const prefix = document.hidden ? "Paused: " : "No answer from patroniglue: ";
  document.title = `${isLost ? prefix : ""}${brief(name)}${role} ${balancers}`;
  // The page loads all four icons at its start: a lost daemon cannot serve one.
  const icon = `/icon-${level}.svg`;
  if (page("icon").getAttribute("href") !== icon) page("icon").href = icon;
}

function roleOf(node, isLost) {
  const role = ROLES[node.role] ?? (node.role ? `“${brief(node.role)}”` : "of unknown role");
  if (isLost || isPatroniDown()) return ` was last seen as ${role}.`;
  return ` is ${role}${isRunning(node) ? "" : `, but PostgreSQL is ${brief(node.state)}`}.`;
}

function isRunning(node) {
  return ["running", "streaming"].includes(node.state ?? "running");
}

function isPatroniDown() {
  return report.patroni?.state === "silent" || report.patroni?.state === "gone";
}

// The route that load balancers use to find this kind of node, or null.
function routeOf(paths) {
  const routes = report.routes ?? [];
  const of = (path) => routes.find((route) => String(route.target).split("?")[0] === path);
  return paths.map(of).find(Boolean) ?? null;
}

function balancersOf(isLost) {
  if (report.state === "ending") return "patroniglue is shutting down.";
  const get = isLost ? "got" : "get";
  if (report.state === "draining") {
    return `Draining: load balancers ${get} 503 on primary and replica routes.`;
  }
  const routes = [routeOf(LEADER_PATHS), routeOf(REPLICA_PATHS)].filter(Boolean);
  if (!routes.length) return "No load balancer has asked for a primary or replica lately.";
  return `Load balancers ${get} ${routes.map(checkOf).join(" and ")}.`;
}

function checkOf(route) {
  const on = `on ${brief(route.target)}`;
  const old = known(route.age_seconds) ? seconds(route.age_seconds) : "age unknown";
  const got = `${route.status ?? "an answer"} ${on}`;
  if (route.served === "failing") return `503 ${on} (no answer from Patroni)`;
  if (route.served === "fetching" && (!route.status || isPatroniDown())) {
    return `nothing ${on} until Patroni answers`;
  }
  if (route.served === "fresh") return `${got} (fresh)`;
  return `${got} (${isStale(route) ? `stale, ${old} old` : `${old} ago`})`;
}

// While Patroni answers, a stale answer is kept, but not served.
function isStale(route) {
  return route.served === "stale" && isPatroniDown();
}

function wordOf(route) {
  return route.served === "stale" && !isStale(route) ? "expired" : route.served;
}

function levelOf() {
  const { patroni, lease, node } = report;
  const route = routeOf(node?.role === "replica" ? REPLICA_PATHS : LEADER_PATHS);
  if (patroni?.state === "gone") return "bad";
  if (patroni?.state === "silent") {
    const isServed = route ? ["stale", "fresh"].includes(route.served) : lease?.remaining_seconds;
    return isServed ? "warn" : "bad";
  }
  if (!node || patroni?.state !== "answers") return "unknown";
  if (route?.served === "failing") return "bad";
  const isOff = route && known(route.status) && route.status !== 200;
  return report.state !== "serving" || !isRunning(node) || isOff ? "warn" : "good";
}

function drawPatroni(patroni) {
  const since = patroni.since ? ` since ${clock(patroni.since)} (${age(patroni.since)})` : "";
  const leads = {
    answers: patroni.last_answer ? `answers, ${age(patroni.last_answer)} ago` : "answers",
    silent: `silent${since}`,
    gone: `gone${since}`,
  };
  text("patroni-lead", leads[patroni.state] ?? "not asked yet");
  const failure = patroni.failure;
  const times = failure?.times > 1 ? ` (${count(failure.times)} times)` : "";
  text("patroni-failure", failure ? `${failure.text}${times}.` : "");
  list("patroni-note", [
    isPatroniDown() && `last answer ${moment(patroni.last_answer) ?? "never"}`,
    patroni.state === "answers" && since.trim(),
    report.node?.dcs_last_seen && `DCS seen ${age(report.node.dcs_last_seen)} ago`,
    patroni.address,
  ]);
}

function drawLease(lease) {
  const rest = lease.remaining_seconds ?? 0;
  const has = rest > 0;
  const most = Math.max(lease.ttl ?? 0, rest, 1);
  text("lease-lead", has ? `${seconds(rest)} left` : `none: ${lease.why_not ?? "not known yet"}`);
  page("lease-bar").toggleAttribute("hidden", !has);
  page("lease-rest").setAttribute("width", String((100 * rest) / most));
  text("lease-text", leaseText(has));
  const source = has && lease.source ? `known from ${SOURCES[lease.source] ?? lease.source}` : "";
  const setting = (name) => known(lease[name]) && `${name}\xa0${lease[name]}\xa0s`;
  list("lease-note", [source, setting("ttl"), setting("loop_wait"), setting("retry_timeout")]);
}

function leaseText(has) {
  if (report.state === "draining") return "Not used while draining.";
  if (isPatroniDown()) {
    return has ? "Leader routes keep their stale answer for that long, then answer 503."
      : "Leader routes have no stale answer.";
  }
  return has ? "If Patroni falls silent, leader routes keep their answer for that long."
    : "If Patroni falls silent, leader routes answer 503 at once.";
}

function drawRoutes(unsorted) {
  const routes = [...unsorted].sort((one, other) => (one.target < other.target ? -1 : 1));
  page("routes-table").hidden = !routes.length;
  page("routes-none").hidden = routes.length > 0;
  rows("routes", routes, () => row("th", "td", "td", "td", "td"), (line, route) => {
    const waiting = route.waiters > 0 ? `, ${count(route.waiters)} waiting` : "";
    const cells = [route.target, route.status ?? "–",
      known(route.age_seconds) ? seconds(route.age_seconds) : "–",
      `${wordOf(route)}${waiting}`, rate(route.requests_per_second ?? 0)];
    cells.forEach((cell, at) => put(line.children[at], cell));
    setClass(line, isStale(route) ? "stale" : route.served === "failing" ? "failing" : "");
  });
}

function row(...cells) {
  const line = document.createElement("tr");
  line.append(...cells.map((cell) => document.createElement(cell)));
  line.firstChild.scope = "row";
  return line;
}

function drawChanges(changes) {
  page("changes-none").hidden = changes.length > 0;
  const make = () => {
    const item = document.createElement("li");
    item.append(document.createElement("time"), " ", document.createElement("span"), " ",
      document.createElement("p"));
    return item;
  };
  rows("changes", changes.slice(0, 100), make, (item, change) => {
    const [time, ago, sentence] = item.children;
    put(time, clock(change.at));
    put(ago, `${age(change.at)} ago`);
    const word = change.level === "info" ? "" : `${change.level}: `;
    put(sentence, word + change.text);
    setClass(item, change.level);
  });
}

function drawRates(rates) {
  const interval = rates.interval_seconds || 1;
  const length = Math.max(120, ...SERIES.map(([key]) => rates[key]?.length ?? 0));
  rows("rates", SERIES, makeChart, (figure, [key, name]) => {
    const values = (rates[key] ?? []).map((value) => Number(value) / interval || 0);
    const scale = scaleOf(Math.max(0, ...values));
    const [caption, plot, axis] = figure.children;
    put(caption.firstChild, name);
    put(caption.lastChild, values.length ? `${rate(values[values.length - 1])}/s` : "–");
    const at = (value, index) =>
      `${round(length - values.length + index + 1)},${round(40 - (38 * value) / scale)}`;
    const line = values.map(at).join(" ");
    const begin = length - values.length + 1;
    plot.setAttribute("viewBox", `1 0 ${length - 1} 41`);
    plot.children[1].setAttribute("x2", length);
    plot.children[0].setAttribute("points",
      values.length ? `${begin},40 ${line} ${length},40` : "");
    plot.children[2].setAttribute("points", line);
    put(axis.firstChild, `${length * interval} s ago`);
    put(axis.lastChild, `0 to ${rate(scale)}/s`);
    setClass(figure, key);
  });
}

function makeChart() {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const axis = document.createElement("p");
  for (const parent of [caption, axis]) {
    parent.append(document.createElement("span"), " ", document.createElement("span"));
  }
  const plot = svg("svg", { "aria-hidden": "true", preserveAspectRatio: "none" });
  plot.append(svg("polygon", {}), svg("line", { x1: 1, y1: 40, y2: 40 }), svg("polyline", {}));
  figure.append(caption, plot, axis);
  return figure;
}

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// The end of a scale: 1, 2 or 5 times a power of ten.
function scaleOf(most) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, most)));
  return power * ([1, 2, 5].find((step) => step * power >= most) ?? 10);
}

function drawDaemon(clients, listening) {
  const { open, max, accepted_total: accepted, refused_total: refused } = clients;
  text("clients", `${count(open)} open, at most ${count(max)}`);
  text("clients-total", `${count(accepted)} accepted, ${count(refused)} refused`);
  page("clients-total").className = refused > 0 ? "stale" : "";
  text("version", report.version ?? "–");
  text("started", moment(report.started) ?? "–");
  const config = report.config;
  const failed = config?.reloaded === false;
  text("config", `${moment(config?.read) ?? "–"}${failed ? "; the last reload failed" : ""}`);
  page("config").className = failed ? "stale" : "";
  list("listens", Object.entries(listening).map(([name, address]) => `${name} on ${address}`));
  text("now", String(report.now).replace("T", " ").replace(/\..*/, " UTC"));
}

// Keeps the elements that exist, so that selected text stays selected.
function rows(id, items, make, fill) {
  const parent = page(id);
  while (parent.childElementCount > items.length) parent.lastElementChild.remove();
  while (parent.childElementCount < items.length) parent.append(make());
  items.forEach((item, at) => fill(parent.children[at], item));
}

function text(id, value) {
  put(page(id), value);
}

function list(id, parts) {
  text(id, parts.filter(Boolean).join(" · "));
}

function brief(value) {
  const all = String(value);
  return all.length > BRIEF_MAX ? `${all.slice(0, BRIEF_MAX)}…` : all;
}

function put(element, value) {
  const all = String(value);
  const words = all.length > TEXT_MAX ? `${all.slice(0, TEXT_MAX)}…` : all;
  if (element.textContent !== words) element.textContent = words;
}

function setClass(element, name) {
  if (element.getAttribute("class") !== name) element.setAttribute("class", name);
}

function known(value) {
  return value !== null && value !== undefined;
}

// HH:MM:SS, after the date if that is not today's.
function clock(time) {
  const [day, rest] = String(time).split("T");
  const hours = (rest ?? "").slice(0, 8);
  return String(report.now).startsWith(day) ? hours : `${day} ${hours}`;
}

function moment(time) {
  return time ? `${clock(time)}, ${age(time)} ago` : null;
}

// How long before the daemon's now: the browser's clock does not matter.
function age(time) {
  return seconds(Math.max(0, (Date.parse(report.now) - Date.parse(time)) / 1000));
}

function seconds(value) {
  if (!Number.isFinite(value)) return "? s";
  if (value < 9.95) return `${value.toFixed(1)}\xa0s`;
  if (value < 120) return `${Math.round(value)}\xa0s`;
  if (value < 7200) return `${Math.floor(value / 60)}\xa0min`;
  if (value < 172800) return `${Math.floor(value / 3600)}\xa0h`;
  return `${Math.floor(value / 86400)}\xa0days`;
}

function rate(value) {
  return value > 0 && value < 9.95 ? String(round(value)) : count(Math.round(value));
}

function round(value) {
  return Math.round(value * 10) / 10;
}

function count(value) {
  return known(value) ? Number(value).toLocaleString("en") : "–";
}

document.addEventListener("visibilitychange", () => {
  watch();
  ask();
});
setInterval(watch, 100);
ask();
