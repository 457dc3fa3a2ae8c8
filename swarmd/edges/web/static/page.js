// What all rooms share: elements made of text only, requests to the server, the person's name, signing out.

const csrf = document.querySelector("meta[name=csrf]").content;

/** An element with properties and children; strings become text, never markup. */
export function made(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Text in which what cannot be seen, or reverses what can, is written out. */
export function visible(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu, (letter) =>
    letter === "\n" || letter === "\t" ? letter : `\\u{${letter.codePointAt(0).toString(16)}}`);
}

/** One request; the answer's JSON, or an error with `code`, `message` and `status`. */
export async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw Object.assign(new Error("the server cannot be reached: nothing was sent, try again"), { code: "offline", status: 0 });
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  const { code = "failed", message = response.statusText } = answer.error ?? {};
  throw Object.assign(new Error(visible(message)), { code, status: response.status });
}

const status = document.querySelector("#status");

export function say(text, isProblem = false) {
  status.textContent = text;
  status.classList.toggle("problem", isProblem);
}

const name = document.querySelector("#name");

/** The person's name as the session has it; asks for it where there is none. */
export async function person() {
  if (name.value.trim() === "") {
    name.focus();
    throw Object.assign(new Error("say who you are first: your name is kept with the answer"), { code: "no_name", status: 400 });
  }
  if (name.value !== kept) await keep();
}

let kept = "";

async function keep() {
  kept = name.value = (await ask("/api/session", { name: name.value })).name;
}

document.querySelector("#who").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await keep();
    say(kept === "" ? "Your name is forgotten." : `You answer as ${kept}.`);
  } catch (error) {
    say(error.message, true);
  }
});

document.querySelector("#sign-out").addEventListener("click", async () => {
  try {
    await ask("/api/sign-out", {});
  } catch (error) {
    if (error.status !== 401) return say(error.message, true);
  }
  location.assign("/");
});

ask("/api/session").then((session) => {
  kept = session.name;
  if (name.value === "") name.value = kept;
}).catch((error) => say(error.message, true));
