// A worker of a swarm in JavaScript, made from docs/protocol.md and the schemas alone, over the client `nats` of npm.
//
// An agent is an async function of (ctx, input). What it does in `ctx.step` is done once, whoever resumes the task.
// Not here: model calls, tools, memory and waits for people, which a worker of swarmd does for its agents.

import { createHash, randomBytes } from "node:crypto";

const HEARTBEAT_MS = 250;
const GRACE_MS = 250; // how long `gather` keeps its slot
const RECEIPT_MS = 2_000;
const FULL_RETRY_MS = 500;
const COMMIT_EVENTS_MAX = 1_024;
const COMMIT_BYTES_MAX = 512 * 1024;
const INLINE_BYTES_MAX = 256 * 1024;
const CHUNK_BYTES = 512 * 1024;
const READ_PARALLEL = 64;
const ERR_STORE_FULL = 10077;
const ERR_TOO_LARGE = 10054;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const decode = (message) => JSON.parse(Buffer.from(message.data).toString("utf8"));

/** Thrown by an agent to fail its attempt with a code of its own; `retryable: false` gives up for good. */
export class AgentFailed extends Error {
  constructor(code, message, { retryable = true } = {}) {
    super(message);
    Object.assign(this, { code, retryable });
  }
}

/** Unwinds an agent whose wait outlasts its grace. */
class Suspended extends Error {}

/** Unwinds an agent whose attempt was stopped: nothing is reported. */
class Stopped extends Error {}

/** The one log writer of a process: numbered commits, one in flight, each repeated until its fate is known. */
class LogWriter {
  #queue = [];
  #writing = false;
  #n = 0;
  seen = 0; // the end of the log as far as we know
  acked = 0; // our last receipt

  constructor(nats, nc, { swarm, name, boot }) {
    Object.assign(this, { nats, nc, boot });
    this.subject = `swarm.${swarm}.log.worker.${name}`;
    this.source = `/${swarm}/worker/${name}`;
  }

  /** Store one event; resolves with its receipt. Stored is not accepted: only the swarm's fold accepts. */
  store(subject, type, data) {
    return new Promise((resolve, reject) => {
      this.#queue.push({ event: { subject, type, data }, resolve, reject });
      if (!this.#writing) this.#write();
    });
  }

  async #write() {
    this.#writing = true;
    while (this.#queue.length) {
      const entries = this.#pack();
      try {
        const receipt = await this.#append(entries.map(({ event }) => event));
        this.acked = receipt.seq;
        for (const entry of entries) entry.resolve(receipt);
      } catch (error) {
        for (const entry of entries) entry.reject(error);
      }
    }
    this.#writing = false;
  }

  /** What goes into the next commit: all that is ready, within bounds. */
  #pack() {
    const entries = [];
    let bytes = 0;
    while (this.#queue.length && entries.length < COMMIT_EVENTS_MAX) {
      bytes += Buffer.byteLength(JSON.stringify(this.#queue[0].event));
      if (entries.length && bytes > COMMIT_BYTES_MAX) break;
      entries.push(this.#queue.shift());
    }
    return entries;
  }

  /** A receipt that counts. A number is never given to other events, even when the first try seems lost. */
  async #append(events) {
    for (;;) {
      const id = `${this.boot}.${++this.#n}`;
      const time = new Date().toISOString();
      const envelope = (event, index) => ({ specversion: "1.0", id: `${id}.${index}`, source: this.source, time, ...event });
      const payload = JSON.stringify(events.map(envelope));
      const { receipt, seen } = await this.#repeat(`${id}.${randomBytes(8).toString("hex")}`, payload);
      const refusal = receipt.error?.err_code;
      if (refusal === ERR_TOO_LARGE) throw new AgentFailed("too_large", "an event is too large", { retryable: false });
      if (refusal === ERR_STORE_FULL) await sleep(FULL_RETRY_MS); // the log is full: under a new number, later
      else if (receipt.seq <= seen && !receipt.duplicate) this.seen = receipt.seq; // a rewound log: that commit is void
      else {
        this.seen = Math.max(this.seen, receipt.seq);
        return receipt;
      }
    }
  }

  /** The same commit again until there is a receipt or a refusal. */
  async #repeat(messageId, payload) {
    for (;;) {
      const seen = this.seen;
      const headers = this.nats.headers();
      headers.set("Nats-Msg-Id", messageId);
      headers.set("Swarmd-Seen", String(seen));
      headers.set("content-type", "application/cloudevents-batch+json");
      try {
        const receipt = decode(await this.nc.request(this.subject, Buffer.from(payload), { timeout: RECEIPT_MS, headers }));
        if (!receipt.error || [ERR_TOO_LARGE, ERR_STORE_FULL].includes(receipt.error.err_code)) return { receipt, seen };
      } catch (error) {
        if (error.name !== "NatsError") throw error; // else no answer or no connection: the commit's fate is unknown
      }
      await sleep(200);
    }
  }
}

/** Reads what is stored: events by their place in the log, and blobs. */
class Store {
  constructor(nc, swarm) {
    Object.assign(this, { nc, swarm });
  }

  /** The events at these places, [sequence, index] each, in the same order. */
  async events(places) {
    const seqs = [...new Set(places.map(([seq]) => seq))];
    const commits = new Map();
    for (let i = 0; i < seqs.length; i += READ_PARALLEL) {
      const chunk = seqs.slice(i, i + READ_PARALLEL);
      const read = await Promise.all(chunk.map((seq) => this.#commit(seq)));
      chunk.forEach((seq, n) => commits.set(seq, read[n]));
    }
    return places.map(([seq, index]) => commits.get(seq)[index]);
  }

  /** One commit. What a replica does not have yet, the stream's leader has. */
  async #commit(seq) {
    const stream = `LOG_${this.swarm}`;
    const wanted = JSON.stringify({ seq });
    const direct = await this.nc.request(`$JS.API.DIRECT.GET.${stream}`, wanted, { timeout: 5_000 });
    if (direct.headers?.has("Nats-Sequence")) return decode(direct);
    const asked = decode(await this.nc.request(`$JS.API.STREAM.MSG.GET.${stream}`, wanted, { timeout: 5_000 }));
    if (asked.error) throw new AgentFailed("journal_unreadable", `sequence ${seq}: ${asked.error.description}`);
    return JSON.parse(Buffer.from(asked.message.data, "base64").toString("utf8"));
  }

  /** A value that an event holds inline under `name`, or as a blob under `<name>_blob`. */
  async value(data, name) {
    const digest = data[`${name}_blob`];
    return digest ? JSON.parse((await this.#blob(digest)).toString("utf8")) : (data[name] ?? null);
  }

  /** The fields that hold `value` in an event: itself, or the hash of a blob when it is large. */
  async pack(value, name) {
    const payload = Buffer.from(JSON.stringify(value ?? null));
    if (payload.length <= INLINE_BYTES_MAX) return { [name]: value ?? null };
    const digest = createHash("sha256").update(payload).digest("hex");
    const chunks = Math.ceil(payload.length / CHUNK_BYTES);
    for (let n = 0; n < chunks; n++) await this.#part(digest, n, payload.subarray(n * CHUNK_BYTES, (n + 1) * CHUNK_BYTES));
    await this.#part(digest, "manifest", JSON.stringify({ bytes: payload.length, chunks }));
    return { [`${name}_blob`]: digest };
  }

  /** Store a part of a blob; one that is there already must be the same. */
  async #part(digest, part, payload) {
    const subject = `swarm.${this.swarm}.blob.${digest}.${part}`;
    const { error } = decode(await this.nc.request(subject, payload, { timeout: 10_000 }));
    if (!error) return;
    const there = error.err_code === ERR_STORE_FULL ? await this.#fetch(digest, part) : undefined;
    if (!there?.equals(Buffer.from(payload))) throw new AgentFailed("blob_refused", error.description);
  }

  async #blob(digest) {
    const { chunks } = JSON.parse((await this.#fetch(digest, "manifest")).toString("utf8"));
    const parts = [];
    for (let n = 0; n < chunks; n++) parts.push(await this.#fetch(digest, n));
    const payload = Buffer.concat(parts);
    if (createHash("sha256").update(payload).digest("hex") !== digest) throw new AgentFailed("blob_corrupt", digest);
    return payload;
  }

  async #fetch(digest, part) {
    const subject = `$JS.API.DIRECT.GET.BLOB_${this.swarm}.swarm.${this.swarm}.blob.${digest}.${part}`;
    const message = await this.nc.request(subject, "", { timeout: 10_000 });
    if (!message.headers?.has("Nats-Sequence")) throw new AgentFailed("blob_missing", `${digest}.${part}`);
    return Buffer.from(message.data);
  }
}

/** What an agent acts through; `task`, `epoch` and `signal` (aborted when the attempt is stopped) tell where it is. */
class Context {
  #journal = new Map();
  #occurrences = new Map();
  #children;
  #spawned = 0;
  #over = false;
  #wake = () => {};

  constructor(start, writer, store) {
    const { task, epoch, labels = {} } = start;
    Object.assign(this, { task, epoch, labels, start, writer, store });
    this.#children = new Map(Object.entries(start.children ?? {}));
    this.aborter = new AbortController();
    this.signal = this.aborter.signal;
  }

  /** Read the recorded steps and the input; returns the input. */
  async load() {
    for (const event of await this.store.events(this.start.journal ?? [])) this.#journal.set(event.data.key, event);
    return this.store.value(this.start, "input");
  }

  /** Do something once: the recorded result, or that of `run(key)`, recorded before this resolves. */
  async step(name, run) {
    const key = this.#key(name);
    const recorded = this.#recorded(key, "swarmd.task.step.v1");
    if (recorded?.failure) throw new AgentFailed(recorded.failure.code, recorded.failure.message, { retryable: false });
    if (recorded) return this.store.value(recorded, "result");
    const started = Date.now();
    const value = await run(`${this.task}~${key}`);
    const result = await this.store.pack(value, "result");
    await this.report("swarmd.task.step.v1", { key, kind: "step", ...result, duration_ms: Date.now() - started });
    return JSON.parse(JSON.stringify(value ?? null)); // as a resumed attempt will see it
  }

  /** Want a child task; returns its id. */
  async spawn(agent, input) {
    const key = this.#key("spawn");
    const n = ++this.#spawned;
    const child = `${this.task}~${n}`;
    if (this.#recorded(key, "swarmd.task.spawned.v1")) return child;
    this.#children.set(child, null);
    await this.report("swarmd.task.spawned.v1", { key, n, agent, ...(await this.store.pack(input, "input")) });
    return child;
  }

  /** The outputs of these children, in order. Gives its slot back when they take longer than a moment. */
  async gather(...children) {
    const all = () => children.every((child) => this.#children.get(child));
    const until = Date.now() + GRACE_MS;
    while (!all() && Date.now() < until) {
      await Promise.race([new Promise((resolve) => (this.#wake = resolve)), sleep(until - Date.now())]);
      this.#check();
    }
    if (!all()) {
      this.waits = [children]; // the task goes on when all of this group have a verdict
      throw new Suspended();
    }
    const verdicts = await this.store.events(children.map((child) => this.#children.get(child)));
    return Promise.all(verdicts.map((event, n) => {
      const done = event?.type === "swarmd.task.completed.v1" && event.subject === children[n];
      if (!done) throw new AgentFailed("child_failed", children[n], { retryable: false });
      return this.store.value(event.data, "output");
    }));
  }

  childDone(child, place) {
    this.#children.set(child, place);
    this.#wake();
  }

  /** Nothing can be recorded any more. */
  close() {
    this.#over = true;
    this.#wake();
  }

  async report(type, data) {
    this.#check();
    await this.writer.store(this.task, type, { epoch: this.epoch, ...data });
  }

  #check() {
    if (this.#over || this.signal.aborted) throw new Stopped();
  }

  /** A step's key: its name and how often that name was used before. */
  #key(name) {
    this.#check();
    const occurrence = (this.#occurrences.get(name) ?? 0) + 1;
    this.#occurrences.set(name, occurrence);
    return `${name}#${occurrence}`;
  }

  #recorded(key, type) {
    const event = this.#journal.get(key);
    if (event && event.type !== type) {
      throw new AgentFailed("journal_mismatch", `${key} was recorded as ${event.type}`, { retryable: false });
    }
    return event?.data;
  }
}

/** A process with one member: joins, heartbeats, runs attempts, drains. */
export class Worker {
  #running = new Map(); // "task epoch" → Context
  #term = 0;
  #ack = 0;
  #listWanted = false;
  #draining = false;
  #idle = () => {};

  /** `agents` maps names to functions; `credentials` is the content of DATA/users/worker.json, or nothing. */
  constructor(nats, { servers, swarm, name, agents, capacity = 16, credentials = {} }) {
    Object.assign(this, { nats, swarm, name, agents, capacity });
    this.boot = randomBytes(8).toString("hex");
    this.node = randomBytes(8).toString("hex");
    this.member = `${name}/${this.boot}/0`;
    const { user, password: pass, inbox_prefix: inboxPrefix = "_INBOX" } = credentials;
    this.options = { servers, user, pass, inboxPrefix, maxReconnectAttempts: -1, reconnectTimeWait: 200 };
  }

  /** Join; resolves when the offer is stored. */
  async start() {
    this.nc = await this.nats.connect(this.options);
    this.heart = await this.nats.connect(this.options); // a flood of work must not delay heartbeats
    this.writer = new LogWriter(this.nats, this.nc, this);
    this.store = new Store(this.nc, this.swarm);
    const address = `swarm.${this.swarm}.dispatch.worker.${this.name}.${this.boot}`;
    this.nc.subscribe(address, { callback: (_, message) => this.#onDispatch(decode(message)) });
    await new Promise((resolve) => {
      const callback = (_, message) => resolve(this.#see(decode(message).seq));
      this.nc.subscribe(`swarm.${this.swarm}.beat`, { callback });
    });
    this.#watchConnection();
    await this.#join();
    this.timer = setInterval(() => this.#beat(), HEARTBEAT_MS);
    this.#beat();
  }

  /** Take nothing new, finish what runs or hand it back after `deadlineMs`, leave. */
  async drain(deadlineMs) {
    this.#draining = true;
    await this.#join(); // capacity 0
    const idle = new Promise((resolve) => (this.#idle = resolve));
    if (this.#running.size) await Promise.race([idle, sleep(deadlineMs)]);
    for (const context of this.#running.values()) context.aborter.abort();
    if (this.#running.size) await idle;
    await this.writer.store(this.member.replaceAll("/", ":"), "swarmd.member.left.v1", { member: this.member });
    clearInterval(this.timer);
    await Promise.all([this.nc.drain(), this.heart.drain()]);
  }

  #join() {
    const offer = {
      member: this.member,
      kind: "node",
      agents: Object.keys(this.agents).sort(),
      capacity: this.#draining ? 0 : this.capacity,
      node: this.node,
    };
    return this.writer.store(this.member.replaceAll("/", ":"), "swarmd.member.joined.v1", offer);
  }

  /** After a reconnect the log may be shorter than we saw (a restored broker): what we saw beyond its end is gone. */
  async #watchConnection() {
    for await (const status of this.nc.status()) {
      if (status.type !== "reconnect") continue;
      const info = await this.nc.request(`$JS.API.STREAM.INFO.LOG_${this.swarm}`, "", { timeout: 5_000 }).catch(() => null);
      const last = info && decode(info).state?.last_seq;
      if (last === undefined || last === null) continue;
      this.writer.seen = Math.min(this.writer.seen, last);
      this.writer.acked = Math.min(this.writer.acked, last);
    }
  }

  #see(seq) {
    this.writer.seen = Math.max(this.writer.seen, seq);
  }

  /** Batches are taken strictly in order; items of kinds that we do not know are skipped, and still acknowledged. */
  #onDispatch({ term, n, seq, items }) {
    this.#see(seq);
    if (term > this.#term) [this.#term, this.#ack] = [term, 0];
    if (term !== this.#term || n !== this.#ack + 1) return; // repeated, out of order, or of a former leader
    this.#ack = n;
    for (const item of items) {
      if (item.op === "start") this.#run(item);
      else if (item.op === "stop") this.#running.get(`${item.task} ${item.epoch}`)?.aborter.abort();
      else if (item.op === "child_done") this.#of(item.task)?.childDone(item.child, item.place);
      else if (item.op === "report") this.#listWanted = true;
      else if (item.op === "rejoin") this.#join();
    }
  }

  #of(task) {
    return [...this.#running.values()].findLast((context) => context.task === task);
  }

  #beat() {
    const running = this.#running.size ? { [this.member]: this.#running.size } : {};
    const { name: writer, boot } = this;
    const health = { role: "worker", writer, boot, term: this.#term, ack: this.#ack, seq: this.writer.acked, running };
    if (this.#listWanted) health.listed = [...this.#running.values()].map(({ task, epoch }) => [task, epoch]);
    this.#listWanted = false;
    if (!this.heart.isClosed()) this.heart.publish(`swarm.${this.swarm}.health.${writer}.${boot}`, JSON.stringify(health));
  }

  /** One attempt, from its start to the receipt of its last report; until then it is listed as running. */
  async #run(start) {
    const name = `${start.task} ${start.epoch}`;
    if (this.#running.has(name)) return;
    const context = new Context(start, this.writer, this.store);
    this.#running.set(name, context);
    const [type, data] = await this.#outcome(context, start);
    if (type) await this.writer.store(start.task, type, { epoch: start.epoch, ...data });
    this.#running.delete(name);
    if (!this.#running.size) this.#idle();
  }

  /** The last report on an attempt: its type and data, or nothing for one that was stopped. */
  async #outcome(context, start) {
    const stopped = new Promise((_, reject) => context.signal.addEventListener("abort", () => reject(new Stopped())));
    try {
      const agent = this.agents[start.agent];
      if (!agent) throw new AgentFailed("no_agent", `this worker has no agent ${start.agent}`);
      const output = await Promise.race([stopped, context.load().then((input) => agent(context, input))]);
      return ["swarmd.task.completed.v1", await this.store.pack(output, "output")];
    } catch (error) {
      if (context.waits) return ["swarmd.task.suspended.v1", { waits: context.waits }];
      if (context.signal.aborted) {
        return this.#draining ? ["swarmd.task.returned.v1", { reason: "the worker is draining" }] : [];
      }
      const failure = { code: error.code ?? "agent_error", message: String(error.message).slice(0, 2_000) };
      return ["swarmd.task.failed.v1", { failure, retryable: error.retryable ?? true }];
    } finally {
      context.close();
    }
  }
}
