// The room of the inbox: requests as they are asked, each with the form for its answer.

import { control } from "/static/form.js";
import { ask, made, person, say, visible } from "/static/page.js";

const room = document.querySelector("#requests");
const cards = new Map();

/** What the server leaves out of a request because it is empty. */
const NOTHING = {
  kind: "question", prompt: "", task: "", agent: "", to: "", tool: "", digest: "", asked_at: "", until_ms: 0, on_timeout: "fail", labels: {},
};

function known(asked) {
  return `${asked.swarm} ${asked.item.id}`;
}

/** Show a look: new requests are added, those that are no longer open are closed; what was typed stays. */
function show(look) {
  const open = new Set(look.requests.map(known));
  for (const [id, card] of cards) if (!open.has(id)) card.close();
  for (const asked of look.requests) {
    const id = known(asked);
    if (!cards.has(id)) {
      const card = cardOf({ ...asked, item: { ...NOTHING, ...asked.item } }, () => cards.delete(id));
      cards.set(id, card);
      room.append(card.node);
    }
  }
  document.querySelector("#count").textContent = open.size === 0 ? "" : `(${open.size + look.more})`;
  document.querySelector("#empty").hidden = cards.size > 0;
  const more = document.querySelector("#more");
  more.hidden = look.more === 0;
  more.textContent = `${look.more} more are open and not shown here: answer some, or use swarmd inbox.`;
  const stale = Object.entries(look.stale).map(([swarm, why]) => `Swarm ${swarm} does not answer, what is shown may be old: ${visible(why)}`);
  warn(stale.join(" "));
}

let warned = "";

/** Say what is wrong with the connection; only when that changed, so that other news stays. */
function warn(text) {
  if (text === warned) return;
  warned = text;
  say(text, text !== "");
}

function cardOf(asked, forget) {
  const { item } = asked;
  const isApproval = item.kind === "approval";
  const words = isApproval ? `Approve a call of ${item.tool}?` : item.prompt.split("\n")[0];
  const tags = [made("span", { className: "tag" }, isApproval ? "approval" : "question")];
  const meta = `${item.agent} · swarm ${asked.swarm}${item.to ? ` · to ${item.to}` : ""}`;
  const summary = made("summary", {}, ...tags, made("span", { className: "first" }, visible(words).slice(0, 200)),
    made("span", { className: "meta" }, visible(meta)));
  const inside = made("div", { className: "inside" });
  const details = made("details", {}, summary, inside);
  const node = made("article", {}, details);
  node.dataset.id = item.id;
  let touched = false;
  // While our own answer is under way the stream may say that the request is closed: by us, so that is no news.
  let isSending = false;
  let isGone = false;
  const answer = {
    sends() { isSending = true; },
    failed() {
      isSending = false;
      if (isGone) over();
    },
    done: (held) => leave(visible(`Answered. Task ${item.task} goes on.`), held),
  };
  details.addEventListener("toggle", () => {
    if (details.open && !inside.hasChildNodes()) fill(asked, inside, answer);
  });
  inside.addEventListener("input", () => { touched = true; });

  function leave(message, held = node.contains(document.activeElement)) {
    node.remove();
    forget();
    if (message) say(message);
    document.querySelector("#empty").hidden = cards.size > 0;
    if (held) (room.querySelector("summary") ?? document.querySelector("#room")).focus();
  }

  /** Somebody typed here: what they wrote is theirs to keep, but it can no longer be sent. */
  function over() {
    node.classList.add("over");
    for (const button of inside.querySelectorAll("button")) button.disabled = true;
    const away = made("button", { type: "button" }, "Put it away");
    away.addEventListener("click", () => leave(""));
    inside.prepend(made("p", { className: "problem", role: "alert" },
      "This request is no longer open: somebody else answered first, its time ran out, or its task ended. "), away);
  }

  return {
    node,
    close() {
      if (isGone) return;
      isGone = true;
      if (isSending) return;
      if (touched) over();
      else leave("");
    },
  };
}

function fact(name, value) {
  return value ? [made("dt", {}, name), made("dd", {}, value)] : [];
}

function fill(asked, inside, answer) {
  const { item } = asked;
  const until = item.until_ms ? `${new Date(item.until_ms).toLocaleString()}, then: ${item.on_timeout}` : "no limit";
  inside.append(
    made("p", { className: "prompt" }, visible(item.prompt)),
    made("dl", {}, ...fact("Task", visible(item.task)), ...fact("Agent", visible(item.agent)), ...fact("Asked", visible(item.asked_at)),
      ...fact("Until", until), ...fact("Request", visible(item.id)),
      ...Object.entries(item.labels).flatMap(([key, value]) => fact(visible(key), visible(value)))),
  );
  const problem = made("p", { className: "problem", role: "alert" });
  const send = sender(asked, inside, problem, answer);
  if (item.kind === "approval") approval(asked, inside, send);
  else question(asked, inside, send);
  inside.append(problem);
}

/** Sends a value; problems are shown at the field that they are about, or below. */
function sender(asked, inside, problem, answer) {
  return async (value, form) => {
    problem.textContent = "";
    // Before the buttons are disabled: that takes the focus away from the one that was pressed.
    const pressed = document.activeElement;
    const held = inside.contains(pressed);
    const buttons = [...inside.querySelectorAll("button")];
    answer.sends();
    for (const button of buttons) button.disabled = true;
    try {
      await person();
      await ask("/api/inbox/answer", { swarm: asked.swarm, id: asked.item.id, value });
      return answer.done(held);
    } catch (error) {
      for (const button of buttons) button.disabled = false;
      if (held) pressed.focus();
      const place = /^(\$(?:[.[].*?)?): (.*)$/s.exec(error.message);
      const marked = error.code === "invalid_answer" && place !== null && form !== null && form.mark(place[1], place[2]);
      const words = { closed: `Somebody else was first: ${error.message}`, invalid_answer: `Not taken: ${error.message}` };
      problem.textContent = marked ? "" : words[error.code] ?? error.message;
      if (error.status === 401) location.assign("/");
    }
    answer.failed();
  };
}

/** Reads a form; undefined, with the first wrong field in focus, when something in it is wrong. */
function readOf(form) {
  const wrong = [];
  const value = form.read(wrong);
  if (wrong.length === 0) return { value };
  wrong[0].input.focus();
  return undefined;
}

function submitting(form, label, node, act) {
  const element = made("form", { noValidate: true }, node, made("div", { className: "row" }, made("button", { type: "submit", className: "main" }, label)));
  element.addEventListener("submit", (event) => {
    event.preventDefault();
    const got = readOf(form);
    if (got !== undefined) act(got.value);
  });
  return element;
}

function question(asked, inside, send) {
  const form = control(asked.form, "$", "");
  inside.append(submitting(form, "Answer", form.node, (value) => send(value ?? null, form)));
}

function approval(asked, inside, send) {
  const { item } = asked;
  const decide = (decision, more, form) => send({ decision, digest: item.digest, ...more }, form);
  const approve = made("button", { type: "button", className: "main" }, "Approve");
  const reject = made("button", { type: "button" }, "Reject…");
  const edit = made("button", { type: "button" }, "Edit…");
  const below = made("div");
  inside.append(
    made("p", {}, "Tool ", made("code", {}, visible(item.tool)), ", arguments:"),
    made("pre", { tabIndex: 0, className: "arguments" }, visible(asked.shown ?? "")),
    made("p", { className: "soft" }, "Hash ", made("code", {}, visible(item.digest))),
    made("div", { className: "row" }, approve, reject, edit), below,
  );
  approve.addEventListener("click", () => decide("approve", {}, null));
  reject.addEventListener("click", () => {
    const why = control({ path: "$.reason", kind: "text", help: "The agent is told.", length_min: 1, multiline: true }, "$.reason", "Why not");
    below.replaceChildren(submitting(why, "Reject", why.node, (reason) => decide("reject", { reason }, why)));
    below.querySelector("textarea").focus();
  });
  edit.addEventListener("click", () => {
    const form = control({ ...asked.form, required: true }, "$.arguments", "arguments");
    below.replaceChildren(submitting(form, "Approve with these arguments", form.node, (value) => decide("edit", { arguments: value }, form)));
    below.querySelector("input, textarea, select")?.focus();
  });
}

// Live: the browser connects again by itself when the stream breaks.
const stream = new EventSource("/api/inbox/stream");
stream.addEventListener("message", (event) => show(JSON.parse(event.data)));
stream.addEventListener("error", () => {
  warn("The connection to the server is lost; what is shown may be old.");
  if (stream.readyState === EventSource.CLOSED) ask("/api/session").catch((error) => error.status === 401 && location.assign("/"));
});
