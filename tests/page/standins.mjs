// A stand-in for Patroni whose answers the test switches, and clients that check the daemon.
import http from "node:http";

const REPLICA_ROUTES = ["/replica", "/read-only"];
const OTHER_ROUTES = ["/health", "/liveness", "/readiness", "/patroni"];

const SYSTEM_IDENTIFIER = "7711116521634884915";
const INTERVALS = { ttl: 30, loop_wait: 10, retry_timeout: 10 };
const LEASE = "7587895443109810437";
const MEMBER = { state: "running", role: "primary", version: "4.1.5", timeline: 1 };
const KEYS = {
  leader: "pg1",
  "members/pg1": JSON.stringify(MEMBER),
  config: JSON.stringify(INTERVALS),
  initialize: SYSTEM_IDENTIFIER,
};

/** Answers like a node of a Patroni cluster, or not at all. */
export class Patroni {
  /** `primary`, `replica` or `frozen`. */
  mood = "primary";
  name = "pg1";
  timeline = 1;
  #port = 0;
  #server = null;

  /** Listens; after `refuse` at the same port again. */
  async listen() {
    this.#server = http.createServer((request, response) => this.#answer(request, response));
    await new Promise((done) => this.#server.listen(this.#port, "127.0.0.1", done));
    this.#port = this.#server.address().port;
    return this.#port;
  }

  /** Closes the listener and all connections. */
  async refuse() {
    this.#server.closeAllConnections();
    await new Promise((done) => this.#server.close(done));
  }

  #answer(request, response) {
    if (this.mood === "frozen") return;
    const path = request.url.split("?")[0];
    const [status, body] = path === "/config"
      ? [200, INTERVALS]
      : [this.#statusOf(path), this.#report()];
    response.writeHead(status, { "Content-Type": "application/json", Connection: "close" });
    response.end(JSON.stringify(body));
  }

  #statusOf(path) {
    if (OTHER_ROUTES.includes(path)) return 200;
    const isReplicaRoute = REPLICA_ROUTES.includes(path);
    return isReplicaRoute === (this.mood === "replica") ? 200 : 503;
  }

  #report() {
    return {
      state: "running",
      role: this.mood,
      server_version: 150018,
      timeline: this.timeline,
      dcs_last_seen: Math.floor(Date.now() / 1000),
      database_system_identifier: SYSTEM_IDENTIFIER,
      patroni: { version: "4.1.5", scope: "main", name: this.name },
    };
  }
}

/** etcd's JSON gateway with the keys of the cluster whose leader is pg1, on a renewed lease. */
export class Etcd {
  #server = http.createServer((request, response) => {
    let text = "";
    request.on("data", (bytes) => { text += bytes; });
    request.on("end", () => {
      const body = JSON.stringify(this.#answer(request.url, JSON.parse(text)));
      response.writeHead(200, { "Content-Length": body.length, Connection: "close" });
      response.end(body);
    });
  });

  async listen() {
    await new Promise((done) => this.#server.listen(0, "127.0.0.1", done));
    return this.#server.address().port;
  }

  close() {
    this.#server.close();
  }

  /** As recorded in tests/fixtures/etcd. */
  #answer(path, body) {
    const header = { cluster_id: "1", member_id: "2", revision: "5", raft_term: "2" };
    if (path === "/v3/lease/timetolive") {
      return { header, ID: body.ID, TTL: "29", grantedTTL: "30" };
    }
    const responses = body.success.map(({ request_range: { key } }) =>
      ({ response_range: { header: { revision: "5" }, ...this.#pair(key) } }));
    return { header, succeeded: true, responses };
  }

  #pair(key) {
    const value = KEYS[Buffer.from(key, "base64").toString().replace("/service/main/", "")];
    if (value === undefined) return {};
    const revisions = { create_revision: "2", mod_revision: "2", version: "1", lease: LEASE };
    return { kvs: [{ key, value: Buffer.from(value).toString("base64"), ...revisions }], count: "1" };
  }
}

/** Checks these targets all the time, each on a connection of its own, as a load balancer does. */
export function check(port, targets) {
  const timers = targets.map((path) => setInterval(() => {
    const request = http.get({ host: "127.0.0.1", port, path, agent: false, timeout: 5000 });
    request.on("response", (response) => response.resume());
    request.on("error", () => {});
  }, 100));
  return () => timers.forEach(clearInterval);
}
