// Builds the controls of a form from the fields that the server made of a JSON Schema.
//
// A control has a `node`, `read(wrong)` (its value, or undefined where it is left out; problems are pushed to `wrong` as
// {place, message}), and `mark(place, message)`, which shows a problem at its field and says whether it found one.
// Places are written as in JSON paths: $.tags[1].name.

import { made, visible } from "/static/page.js";

let made_so_far = 0;

export function control(field, place, name) {
  const kinds = { object, list, choice, const: constant, text, integer: number, number, boolean: choice, json };
  return kinds[field.kind](field, place, name);
}

const isRequired = (field) => field.required !== false;

/** What an input that was left empty means: left out, null, or `otherwise`. */
function empty(field, otherwise) {
  if (!isRequired(field)) return undefined;
  return field.nullable ? null : otherwise;
}

/** A label, help and a place for problems around one input. */
function framed(field, place, name, input, read) {
  const id = `field-${++made_so_far}`;
  const problem = made("span", { className: "problem", id: `${id}-problem` });
  const help = field.help ? made("span", { className: "help", id: `${id}-help` }, visible(field.help)) : null;
  input.id = id;
  input.setAttribute("aria-describedby", [help ? help.id : "", problem.id].join(" ").trim());
  if (isRequired(field)) input.setAttribute("aria-required", "true");
  const title = visible(field.label && field.label !== name ? `${field.label} (${name})` : name || field.label || "Your answer");
  const label = made("label", { htmlFor: id }, title, isRequired(field) ? "" : made("span", { className: "soft" }, " optional"));
  const node = made("div", { className: "field" }, label, help, input, problem);
  const show = (message) => {
    problem.textContent = message;
    input.setAttribute("aria-invalid", message === "" ? "false" : "true");
  };
  input.addEventListener("input", () => show(""));
  return {
    node,
    place,
    read(wrong) {
      show("");
      try {
        return read();
      } catch (error) {
        show(error.message);
        wrong.push({ place: this.place, message: error.message, input });
        return undefined;
      }
    },
    mark(where, message) {
      if (where !== this.place && !where.startsWith(`${this.place}.`) && !where.startsWith(`${this.place}[`)) return false;
      show(message);
      input.focus();
      return true;
    },
    move(to) { this.place = to; },
  };
}

function text(field, place, name) {
  const input = field.multiline ? made("textarea", { rows: 4 }) : made("input", { type: "text" });
  input.value = field.default ?? "";
  return framed(field, place, name, input, () => {
    if (input.value === "" && !(isRequired(field) && !field.nullable)) return empty(field, "");
    const length = [...input.value].length;
    if (length < (field.length_min ?? 0)) throw new Error(`must have at least ${field.length_min} characters`);
    if (field.length_max !== undefined && length > field.length_max) throw new Error(`must have at most ${field.length_max} characters`);
    return input.value;
  });
}

function number(field, place, name) {
  const isWhole = field.kind === "integer";
  const input = made("input", { type: "text", inputMode: isWhole ? "numeric" : "decimal" });
  input.value = field.default ?? "";
  return framed(field, place, name, input, () => {
    const typed = input.value.trim();
    if (typed === "") {
      const nothing = empty(field, "");
      if (nothing === "") throw new Error("an answer is needed");
      return nothing;
    }
    const value = Number(typed);
    if (!Number.isFinite(value) || (isWhole && !Number.isInteger(value))) throw new Error(`must be a ${isWhole ? "whole " : ""}number`);
    if (isWhole && !Number.isSafeInteger(value)) throw new Error("is too large for this page: use `swarmd inbox answer`");
    if (field.minimum !== undefined && value < field.minimum) throw new Error(`must be at least ${field.minimum}`);
    if (field.maximum !== undefined && value > field.maximum) throw new Error(`must be at most ${field.maximum}`);
    return value;
  });
}

function choice(field, place, name) {
  const isBoolean = field.kind === "boolean";
  const options = isBoolean ? [true, false] : field.options;
  const words = isBoolean ? ["yes", "no"] : options.map((option) => (typeof option === "string" ? option : JSON.stringify(option)));
  const input = made("select", {}, made("option", { value: "" }, isRequired(field) ? "choose" : "left out"),
    ...words.map((word, index) => made("option", { value: String(index) }, visible(word))));
  const chosen = options.findIndex((option) => JSON.stringify(option) === JSON.stringify(field.default));
  input.value = chosen < 0 ? "" : String(chosen);
  return framed(field, place, name, input, () => {
    if (input.value !== "") return options[Number(input.value)];
    const nothing = empty(field, "");
    if (nothing === "") throw new Error("an answer is needed");
    return nothing;
  });
}

function constant(field, place) {
  return { node: made("span", { hidden: true }), place, read: () => field.value, mark: () => false, move() {} };
}

function json(field, place, name) {
  const input = made("textarea", { rows: 6, className: "json", spellcheck: false });
  input.value = field.default === undefined ? "" : JSON.stringify(field.default, null, 2);
  const help = field.help ? `${field.help} (JSON)` : "JSON";
  return framed({ ...field, help }, place, name, input, () => {
    if (input.value.trim() === "") {
      const nothing = empty(field, "");
      if (nothing === "") throw new Error("an answer is needed");
      return nothing;
    }
    try {
      return JSON.parse(input.value);
    } catch (error) {
      throw new Error(`must be JSON: ${error.message}`);
    }
  });
}

function object(field, place, name) {
  const key = (inner) => inner.path.slice(field.path.length + 1);
  const controls = field.fields.map((inner) => [key(inner), control(inner, `${place}.${key(inner)}`, key(inner))]);
  const problem = made("span", { className: "problem" });
  const inside = made("div", {}, ...controls.map(([, one]) => one.node));
  let wanted = null;
  let node = inside;
  if (name !== "") {
    const legend = made("legend", {}, visible(field.label && field.label !== name ? `${field.label} (${name})` : name));
    node = made("fieldset", {}, legend, field.help ? made("span", { className: "help" }, visible(field.help)) : null, problem);
    if (!isRequired(field)) {
      wanted = made("input", { type: "checkbox", checked: field.default !== undefined });
      inside.hidden = !wanted.checked;
      wanted.addEventListener("change", () => { inside.hidden = !wanted.checked; });
      node.append(made("label", {}, wanted, " fill in"));
    }
    node.append(inside);
  }
  return {
    node,
    place,
    read(wrong) {
      problem.textContent = "";
      if (wanted !== null && !wanted.checked) return undefined;
      const value = {};
      for (const [name_of, one] of controls) {
        const got = one.read(wrong);
        // Defined, not assigned: a field may be called __proto__.
        if (got !== undefined) Object.defineProperty(value, name_of, { value: got, enumerable: true, writable: true, configurable: true });
      }
      return value;
    },
    mark(where, message) {
      if (controls.some(([, one]) => one.mark(where, message))) return true;
      if (where !== this.place || name === "") return false;
      problem.textContent = message;
      return true;
    },
    move(to) {
      this.place = to;
      for (const [name_of, one] of controls) one.move(`${to}.${name_of}`);
    },
  };
}

function list(field, place, name) {
  const entries = [];
  const problem = made("span", { className: "problem" });
  const inside = made("div");
  const add = made("button", { type: "button" }, "Add an entry");
  const legend = made("legend", {}, visible(name || field.label || "Your answer"), isRequired(field) ? "" : made("span", { className: "soft" }, " optional"));
  const node = made("fieldset", {}, legend, field.help ? made("span", { className: "help" }, visible(field.help)) : null, inside, add, problem);
  const self = {
    node,
    place,
    read(wrong) {
      problem.textContent = "";
      if (entries.length === 0 && !isRequired(field)) return undefined;
      const value = entries.map((entry) => entry.control.read(wrong) ?? null);
      if (value.length < (field.length_min ?? 0)) {
        problem.textContent = `must have at least ${field.length_min} entries`;
        wrong.push({ place: self.place, message: problem.textContent, input: add });
      }
      return value;
    },
    mark(where, message) {
      if (entries.some((entry) => entry.control.mark(where, message))) return true;
      if (where !== self.place) return false;
      problem.textContent = message;
      return true;
    },
    move(to) {
      self.place = to;
      entries.forEach((entry, index) => entry.control.move(`${to}[${index}]`));
    },
  };
  function enter(value) {
    const index = entries.length;
    const item = value === undefined ? field.item : withDefault(field.item, value);
    const entry = { control: control({ ...item, required: true }, `${self.place}[${index}]`, `entry ${index + 1}`) };
    const remove = made("button", { type: "button" }, "Remove");
    entry.node = made("div", { className: "entry" }, entry.control.node, remove);
    remove.addEventListener("click", () => {
      entries.splice(entries.indexOf(entry), 1);
      entry.node.remove();
      self.move(self.place);
      add.focus();
    });
    entries.push(entry);
    inside.append(entry.node);
    return entry;
  }
  add.addEventListener("click", () => enter().node.querySelector("input, textarea, select")?.focus());
  for (const value of Array.isArray(field.default) ? field.default : []) enter(value);
  return self;
}

/** The same field with a value as its defaults. */
function withDefault(field, value) {
  const copy = { ...field, default: value };
  if (field.kind === "object" && value !== null && typeof value === "object") {
    copy.fields = field.fields.map((inner) => {
      const key = inner.path.slice(field.path.length + 1);
      return Object.hasOwn(value, key) ? withDefault(inner, value[key]) : inner;
    });
  }
  return copy;
}
