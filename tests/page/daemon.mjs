// The daemon under test: a process with a configuration of its own on free ports of loopback.
import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";

/** Resolves after this time. */
export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export class Daemon {
  log = "";

  /** Starts it and waits until it answers on its admin port. */
  static async start(binary, patroniPort, grace, etcdPort) {
    const daemon = new Daemon();
    daemon.port = await freePort();
    daemon.adminPort = await freePort();
    daemon.url = `http://127.0.0.1:${daemon.adminPort}`;
    daemon.folder = await mkdtemp(path.join(tmpdir(), "patroniglue-page-"));
    const config = path.join(daemon.folder, "config.yml");
    await writeFile(config, [
      `frontend: {host: 127.0.0.1, port: ${daemon.port}}`,
      `backend: {host: 127.0.0.1, port: ${patroniPort}, timeout: 2}`,
      `cache: {ttl: 1, grace: ${grace}}`,
      `admin: {host: 127.0.0.1, port: ${daemon.adminPort}}`,
      etcdPort ? `dcs: {type: etcd3, hosts: "127.0.0.1:${etcdPort}"}` : "",
      "",
    ].join("\n"));
    daemon.process = spawn(binary, ["-config", config], { stdio: ["ignore", "pipe", "pipe"] });
    for (const output of [daemon.process.stdout, daemon.process.stderr]) {
      output.on("data", (bytes) => { daemon.log += bytes; });
    }
    daemon.ended = new Promise((done) => {
      daemon.process.on("error", (error) => { daemon.log += error; done(); });
      daemon.process.on("exit", done);
    });
    await daemon.until("it answers", () => true);
    return daemon;
  }

  /** The answer of /status, or null. */
  async status() {
    const signal = AbortSignal.timeout(1000);
    const response = await fetch(`${this.url}/status`, { signal }).catch(() => null);
    return response?.ok ? response.json() : null;
  }

  /** Waits until /status says so. */
  async until(what, isSo) {
    const end = performance.now() + STATUS_MS_MAX;
    let status = null;
    while (performance.now() < end) {
      status = await this.status();
      if (status && isSo(status)) return status;
      await pause(25);
    }
    const text = JSON.stringify(status, null, 1);
    throw new Error(`/status does not say that ${what}: ${text}\nlog:\n${this.log}`);
  }

  signal(name) {
    this.process.kill(name);
  }

  async stop() {
    if (this.process.exitCode === null) this.process.kill("SIGKILL");
    await this.ended;
    await rm(this.folder, { recursive: true });
  }
}

const STATUS_MS_MAX = 30_000;

async function freePort() {
  const server = net.createServer();
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}
