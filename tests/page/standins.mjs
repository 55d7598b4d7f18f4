// A stand-in for Patroni whose answers the test switches, and clients that check the daemon.
import http from "node:http";

const REPLICA_ROUTES = ["/replica", "/read-only"];
const OTHER_ROUTES = ["/health", "/liveness", "/readiness", "/patroni"];

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
      ? [200, { ttl: 30, loop_wait: 10, retry_timeout: 10 }]
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
      database_system_identifier: "7711116521634884915",
      patroni: { version: "4.1.5", scope: "main", name: this.name },
    };
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
