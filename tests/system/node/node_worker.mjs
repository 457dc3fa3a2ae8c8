// A worker with agents for tests: they note what they really do in a ledger, and wait at gates until a test opens them.
//
// node node_worker.mjs NODE_MODULES NATS_URL NAME [USER_FILE]

import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { AgentFailed, Worker } from "./swarmd_worker.mjs";

const [modules, servers, name, userFile] = process.argv.slice(2);
const nats = createRequire(`${modules}/`)("nats");
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function pass(gate) {
  while (!existsSync(gate)) await sleep(20);
}

// So many `steps`, each noted when it is done; after step `hold` it waits at `gate`, within step `inside` too.
async function stepper(ctx, { steps, hold, inside, gate, ledger, pause = 0 }) {
  const results = [];
  for (let number = 1; number <= steps; number++) {
    results.push(await ctx.step("act", async () => {
      appendFileSync(ledger, `${ctx.task} ${number}\n`);
      if (number === inside) await pass(gate);
      if (pause) await sleep(pause);
      return number * number;
    }));
    if (number === hold) await pass(gate);
  }
  return results;
}

async function parent(ctx, { child, input }) {
  const children = [await ctx.spawn(child, input), await ctx.spawn(child, input)];
  return ctx.gather(...children);
}

async function held(ctx, { gate, ledger }) {
  appendFileSync(ledger, `${ctx.task} started ${ctx.epoch}\n`);
  await pass(gate);
  return ctx.task;
}

const large = (ctx, bytes) => ctx.step("large", () => "x".repeat(bytes));

async function failing() {
  throw new AgentFailed("no_luck", "it never works", { retryable: false });
}

const credentials = userFile ? JSON.parse(readFileSync(userFile, "utf8")) : {};
const agents = { stepper, parent, held, large, failing };
const worker = new Worker(nats, { servers, swarm: "main", name, agents, credentials });
process.on("SIGTERM", () => worker.drain(300).then(() => process.exit(0)));
await worker.start();
console.log(JSON.stringify({ ready: worker.member }));
