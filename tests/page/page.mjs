// Drives the status page of the real daemon in Chromium through the states of a node. Each state
// must be seen within 2 s, in light and dark, on a phone and on a wide screen.
import { mkdir, readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { Daemon, pause } from "./daemon.mjs";
import { check, Etcd, Patroni } from "./standins.mjs";

const { PATRONIGLUE, SCREENSHOTS, MODULES } = process.env;
const modules = createRequire(path.join(path.resolve(MODULES), "page.mjs"));
const { chromium } = modules("playwright-core");
const axe = await readFile(modules.resolve("axe-core/axe.min.js"), "utf8");

const SEEN_MS_MAX = 2000;
const PAGE_BYTES_MAX = 24 * 1024;
const FILES = ["/", "/status.css", "/status.js"];
const ICONS = ["good", "warn", "bad", "unknown"].map((level) => `/icon-${level}.svg`);
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
  "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const RULES = ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"];
const CHROMIUM = {
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
};
const LOOKS = ["light", "dark"].flatMap((colorScheme) =>
  [[360, 640], [1280, 900]].map(([width, height]) => ({ colorScheme, width, height })));

function assert(isSo, what) {
  if (!isSo) throw new Error(what);
}

/** The page in one colour scheme and width. */
class View {
  errors = [];
  isDaemonDown = false;
  asked = 0;
  #asking = new Set();

  static async open(browser, url, { colorScheme, width, height }, options = {}) {
    const view = new View();
    const viewport = { width, height };
    view.name = `${colorScheme}-${width}`;
    view.context = await browser.newContext({ colorScheme, viewport, ...options });
    view.page = await view.context.newPage();
    view.url = url;
    view.#listen();
    await view.page.goto(url);
    return view;
  }

  #listen() {
    this.page.on("pageerror", (error) => this.errors.push(`error: ${error.message}`));
    this.page.on("console", (message) => {
      const isExpected = this.isDaemonDown && message.text().startsWith("Failed to load resource");
      if (!isExpected) this.errors.push(`console: ${message.text()}`);
    });
    this.page.on("request", (request) => {
      if (!request.url().startsWith(this.url)) this.errors.push(`asks ${request.url()}`);
      if (!request.url().endsWith("/status")) return;
      this.asked += 1;
      this.#asking.add(request);
      if (this.#asking.size > 1) this.errors.push("two requests at once");
    });
    for (const end of ["requestfinished", "requestfailed"]) {
      this.page.on(end, (request) => this.#asking.delete(request));
    }
  }

  /** What a person sees. */
  read() {
    return this.page.evaluate(() => {
      const text = (id) => {
        const element = document.getElementById(id);
        return element.checkVisibility() ? element.innerText.replace(/\s+/g, " ").trim() : "";
      };
      const colour = (id) => getComputedStyle(document.getElementById(id)).color;
      return {
        title: document.title,
        icon: document.getElementById("icon").getAttribute("href"),
        signs: [...document.images].filter((image) => image.checkVisibility()).map((image) =>
          (image.naturalWidth ? image.getAttribute("src") : "not loaded")),
        sentence: text("name") + " " + text("role"),
        balancers: text("balancers"),
        patroni: `${text("patroni-lead")}; ${text("patroni-failure")}`,
        lease: text("lease-lead"),
        bar: Number(document.getElementById("lease-rest").getAttribute("width")),
        routes: text("routes-table"),
        changes: text("changes"),
        banner: text("silence"),
        isGrey: ["role", "balancers", "patroni-lead", "clients"].every(
          (id) => colour(id) === colour("facts")),
      };
    });
  }

  /** Waits until the page shows it; returns after which time. */
  async sees(state, isSo, start) {
    let seen = null;
    while (performance.now() - start <= SEEN_MS_MAX) {
      seen = await this.read();
      if (isSo(seen)) return Math.round(performance.now() - start);
      await pause(25);
    }
    throw new Error(`${state}, ${this.name}: not seen in time: ${JSON.stringify(seen, null, 1)}`);
  }

  async inspect(state) {
    const [sideways, below] = await this.page.evaluate(() => [
      document.documentElement.scrollWidth - innerWidth,
      ["role", "balancers", "patroni-lead", "lease-lead"].filter(
        (id) => document.getElementById(id).getBoundingClientRect().bottom > innerHeight),
    ]);
    assert(sideways <= 0, `${state}, ${this.name}: scrolls sideways by ${sideways} pixels`);
    assert(!below.length, `${state}, ${this.name}: not on the first screen: ${below}`);
    await this.page.screenshot({ path: path.join(SCREENSHOTS, `${state}-${this.name}.png`),
      fullPage: true });
    const violations = await this.page.evaluate(`${axe}; axe.run({ runOnly: ${
      JSON.stringify(RULES)} }).then(({ violations }) => violations.map(
      ({ id, nodes }) => id + " " + nodes.map(({ target }) => target)))`);
    assert(!violations.length, `${state}, ${this.name}: axe: ${violations.join("; ")}`);
    assert(!this.errors.length, `${state}, ${this.name}: ${this.errors.join("; ")}`);
  }
}

/** One daemon, its Patroni, and the views of its page. */
class Scene {
  static async open(browser, grace, looks = LOOKS, etcdPort = null) {
    const scene = new Scene();
    scene.patroni = new Patroni();
    const patroniPort = await scene.patroni.listen();
    // not frozen: a read of the DCS that Patroni may still carry out keeps a lease unknown
    await scene.patroni.refuse();
    scene.daemon = await Daemon.start(PATRONIGLUE, patroniPort, grace, etcdPort);
    scene.views = [];
    for (const look of looks) scene.views.push(await View.open(browser, scene.daemon.url, look));
    return scene;
  }

  /** Starts Patroni, and load balancers that ask. */
  async begin() {
    await this.patroni.listen();
    this.endChecks = check(this.daemon.port, ["/primary", "/replica"]);
  }

  /** /status says so, and within 2 s each view shows it. */
  async state(name, says, shows) {
    if (says) await this.daemon.until(name, says);
    const start = performance.now();
    const times = await Promise.all(this.views.map((view) => view.sees(name, shows, start)));
    console.log(`page: ${name}: seen after ${times.join(", ")} ms`);
  }

  async inspect(name) {
    for (const view of this.views) await view.inspect(name);
  }

  async close() {
    this.endChecks?.();
    for (const view of this.views ?? []) await view.context.close();
    await this.daemon?.stop();
    await this.patroni.refuse().catch(() => {});
  }
}

const routeOf = (status, target) => status.routes.find((route) => route.target === target);
// a fetch has timed out as well
const isSilent = ({ patroni }) => patroni.state === "silent" && patroni.failure !== null;
const served = (status, target) => routeOf(status, target)?.served;
const statusOf = (status, target) => routeOf(status, target)?.status;
const hasSign = (view, icon) =>
  view.icon === `/icon-${icon}.svg` && String(view.signs) === view.icon;
const shows = (view, icon, ...texts) =>
  hasSign(view, icon) && view.banner === "" &&
  texts.every((text) => Object.values(view).some((value) => String(value).includes(text)));

async function withGrace(browser) {
  const scene = await Scene.open(browser, 10);
  const { daemon, patroni } = scene;
  try {
    await scene.state("started", (status) => status.node === null,
      (view) => view.sentence.trim() === "Nothing is known about this node yet.");
    await scene.inspect("started");

    await scene.begin();
    await scene.state("primary",
      (status) => status.node?.role === "primary" && status.lease.remaining_seconds > 0,
      (view) => shows(view, "good", "pg1 is the primary.", "Load balancers get 200 on /primary (",
        "answers, ", " s left") && view.title.startsWith("pg1 is the primary. Load balancers"));
    await scene.inspect("primary");
    await isHidden(scene.views[0]);

    patroni.mood = "frozen";
    await scene.state("frozen-with-grace",
      (status) => isSilent(status) && served(status, "/primary") === "stale",
      (view) => shows(view, "warn", "pg1 was last seen as the primary.",
        "200 on /primary (stale, ", "silent since ", "did not answer in time", " s left"));
    await barRuns(scene.views);
    await scene.inspect("frozen-with-grace");

    patroni.mood = "primary";
    await scene.state("recovered",
      (status) => status.patroni.state === "answers" && served(status, "/primary") === "fresh",
      (view) => shows(view, "good", "pg1 is the primary.", "answers, "));
    await scene.inspect("recovered");

    patroni.mood = "replica";
    patroni.timeline += 1;
    await scene.state("switchover",
      (status) => status.node?.role === "replica" && statusOf(status, "/replica") === 200,
      (view) => shows(view, "good", "pg1 is a replica.", "503 on /primary (",
        "200 on /replica (", "none: ", "role changed from primary to replica"));
    await scene.inspect("replica");

    await patroni.refuse();
    await scene.state("refused", (status) => status.patroni.state === "gone",
      (view) => shows(view, "bad", "pg1 was last seen as a replica.", "gone since "));
    await scene.inspect("refused");
    patroni.mood = "primary";
    await patroni.listen();
    await scene.state("promoted",
      (status) => status.patroni.state === "answers" && status.node?.role === "primary",
      (view) => shows(view, "good", "pg1 is the primary."));

    daemon.signal("SIGUSR1");
    await scene.state("draining", (status) => status.state === "draining",
      (view) => shows(view, "warn", "Draining: load balancers get 503"));
    await scene.inspect("draining");
    daemon.signal("SIGUSR2");
    await scene.state("drained", (status) => status.state === "serving",
      (view) => shows(view, "good", "200 on /primary ("));

    await silence(scene);
  } finally {
    await scene.close();
  }
}

/** A daemon that hangs, goes on, and ends. */
async function silence(scene) {
  const isLost = (view) => view.isGrey && hasSign(view, "unknown") &&
    view.title.startsWith("No answer from patroniglue: ") &&
    /^This page has heard nothing from patroniglue for \d+ s\.$/.test(view.banner);
  scene.daemon.signal("SIGSTOP");
  await scene.state("hanging", null, isLost);
  await scene.inspect("hanging");
  scene.daemon.signal("SIGCONT");
  await scene.state("goes on", () => true, (view) => !view.isGrey && shows(view, "good"));
  scene.views.forEach((view) => { view.isDaemonDown = true; });
  scene.daemon.signal("SIGTERM");
  await scene.daemon.ended;
  await scene.state("stopped", null, isLost);
  await scene.inspect("stopped");
}

async function barRuns(views) {
  const before = await Promise.all(views.map((view) => view.read()));
  await pause(1500);
  for (const [at, view] of views.entries()) {
    const { bar } = await view.read();
    assert(bar < before[at].bar, `${view.name}: the bar went from ${before[at].bar} to ${bar}`);
  }
}

/** A hidden tab asks nothing and does not look current; a shown one asks at once. */
async function isHidden(view) {
  const setHidden = (value) => view.page.evaluate((isHidden) => {
    Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }, value);
  await setHidden(true);
  await pause(100);
  const asked = view.asked;
  await pause(2500);
  assert(view.asked === asked, "a hidden tab asks");
  const { title } = await view.read();
  assert(title.startsWith("Paused: "), `a hidden tab says ${title}`);
  await setHidden(false);
  await view.sees("shown again", ({ banner }) => banner === "", performance.now());
}

async function withoutGrace(browser) {
  const scene = await Scene.open(browser, 0);
  try {
    await scene.begin();
    await scene.state("primary, grace 0", (status) => status.node?.role === "primary",
      (view) => shows(view, "good", "pg1 is the primary.", "none: grace is 0"));
    scene.patroni.mood = "frozen";
    await scene.state("frozen-without-grace",
      (status) => isSilent(status) && served(status, "/primary") === "failing",
      (view) => shows(view, "bad", "503 on /primary (no answer from Patroni)", "silent since ",
        "none: grace is 0"));
    await scene.inspect("frozen-without-grace");
  } finally {
    await scene.close();
  }
}

/** Without grace, but with a DCS that confirms the lease. */
async function withWitness(browser) {
  const etcd = new Etcd();
  const scene = await Scene.open(browser, 0, LOOKS, await etcd.listen());
  try {
    await scene.begin();
    await scene.state("primary, with dcs",
      (status) => status.lease.source === "dcs" && served(status, "/primary") === "fresh",
      (view) => shows(view, "good", "pg1 is the primary.", "dcs: the lease is readable", " s left"));
    scene.patroni.mood = "frozen";
    await scene.state("witness-in-force",
      (status) => isSilent(status) && served(status, "/primary") === "stale",
      (view) => shows(view, "warn", "200 on /primary (stale, ", "silent since ", " s left",
        "stale answers rest on the lease in the dcs"));
    await scene.inspect("witness-in-force");
  } finally {
    await scene.close();
    etcd.close();
  }
}

async function hostile(browser) {
  const scene = await Scene.open(browser, 10);
  const markup = "<script>document.title = \"taken\"</script>\"<img src=x>";
  try {
    scene.patroni.name = markup + "x".repeat(64 * 1024);
    await scene.begin();
    const { node } = await scene.daemon.until("Patroni answers", (status) => status.node);
    const text = node.name?.startsWith("<script>") ? "<script>" : "is the primary.";
    await scene.state("hostile", null, (view) => shows(view, "good", text));
    for (const view of scene.views) {
      const found = await view.page.evaluate(
        () => document.querySelectorAll("#all script, #all main img, #all h1 img").length);
      assert(found === 0, `${view.name}: Patroni's name became markup`);
    }
    await scene.inspect("hostile");
  } finally {
    await scene.close();
  }
}

/** Headers, sizes, conditional requests; links without JavaScript; 304 on reload. */
async function files(browser) {
  const scene = await Scene.open(browser, 10, []);
  const { url } = scene.daemon;
  try {
    let bytes = 0;
    for (const file of FILES) {
      const response = await fetch(url + file);
      const etag = response.headers.get("ETag");
      assert(response.status === 200 && etag, `${file}: ${response.status}, ETag ${etag}`);
      assert(response.headers.get("Cache-Control") === "no-cache", `${file}: Cache-Control`);
      bytes += (await response.arrayBuffer()).byteLength;
      const again = await fetch(url + file, { headers: { "If-None-Match": etag } });
      assert(again.status === 304, `${file} again: ${again.status}`);
    }
    for (const icon of ICONS) {
      const response = await fetch(url + icon);
      assert(response.headers.get("Content-Type") === "image/svg+xml", `${icon}: Content-Type`);
      bytes += (await response.arrayBuffer()).byteLength;
    }
    assert(bytes <= PAGE_BYTES_MAX, `the page has ${bytes} bytes`);
    const { headers } = await fetch(`${url}/`);
    assert(headers.get("Content-Security-Policy") === POLICY, "Content-Security-Policy");
    assert(headers.get("Referrer-Policy") === "no-referrer", "Referrer-Policy");
    await reload(browser, url);
    for (const look of LOOKS) await withoutScript(browser, url, look);
    console.log(`page: ${bytes} bytes, 304 on reload, links without JavaScript`);
  } finally {
    await scene.close();
  }
}

async function reload(browser, url) {
  const { page, context } = await View.open(browser, url, LOOKS[0]);
  const session = await context.newCDPSession(page);
  const statuses = [];
  session.on("Network.responseReceivedExtraInfo", ({ statusCode }) => statuses.push(statusCode));
  await session.send("Network.enable");
  await page.reload();
  await pause(200);
  const unchanged = statuses.filter((status) => status === 304);
  assert(unchanged.length >= FILES.length, `on reload: ${statuses}`);
  await context.close();
}

async function withoutScript(browser, url, look) {
  const { page, context, name } =
    await View.open(browser, url, look, { javaScriptEnabled: false });
  await page.screenshot({ path: path.join(SCREENSHOTS, `without-script-${name}.png`) });
  for (const [link, text] of [["/status", "\"version\""], ["/metrics", "patroniglue_build_info"]]) {
    const visible = page.locator(`a[href="${link}"]:visible`);
    await visible.click();
    assert((await page.content()).includes(text), `${link} without JavaScript`);
    await page.goBack();
  }
  await context.close();
}

await mkdir(SCREENSHOTS, { recursive: true });
const browser = await chromium.launch(CHROMIUM);
try {
  for (const part of [files, withGrace, withoutGrace, withWitness, hostile]) await part(browser);
  console.log("page: all passed");
} catch (error) {
  console.error(`page: failed: ${error.stack}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}
