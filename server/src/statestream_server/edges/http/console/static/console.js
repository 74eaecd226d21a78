// The console: views of what /console/api says. The token stays in this tab (sessionStorage).

import { bars, lines, short } from "./charts.js";

const main = document.getElementById("main"), said = document.getElementById("said");
const TOKEN = "statestream.token";
let about = null, view = 0; // A view that is left stops asking: its number is not the newest any more.

// ---- asking

class Refused extends Error {
  constructor(status, told) {
    super(`${told.reason}: ${told.message}`);
    this.status = status; this.reason = told.reason;
  }
}

async function send(path, { body, query } = {}) {
  const headers = { "X-Statestream": "console" }, token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const asked = query ? `?${new URLSearchParams(query)}` : "";
  let answer;
  try {
    answer = await fetch(`/console/api/${path}${asked}`, { method: body === undefined ? "GET" : "POST", headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Refused(0, { reason: "UNREACHABLE", message: "the server does not answer; is it running?" });
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    throw new Refused(answer.status, told?.error ?? { reason: `HTTP ${answer.status}`, message: "the answer cannot be read" });
  }
  return answer;
}

const ask = async (path, more) => (await send(path, more)).json();
const may = (right) => about?.rights.includes(right);

function tell(text) {
  said.textContent = text;
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => { said.textContent = ""; }, 6000);
}

// ---- building

function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const show = (...children) => main.replaceChildren(...children.flat().filter(Boolean));
const field = (label, input, wide) => el("label", { class: wide ? "wide" : null }, label, input);
const link = (text, ...path) => el("a", { href: `#/${path.map(encodeURIComponent).join("/")}` }, text);

function table(caption, heads, rows) {
  // A head that ends with # is of numbers, with ~ of sentences, with ^ of words; one with ? is left out where there is little room.
  const kinds = { "#": "number", "~": "long", "^": "short", "?": "less" };
  const kind = (head) => Object.entries(kinds).filter(([mark]) => head.includes(mark)).map(([, name]) => name).join(" ") || null;
  const row = (cells) => el("tr", {}, cells.map((cell, at) => el("td", { class: kind(heads[at]) }, cell)));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {},
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col", class: kind(head) }, head.replace(/[#?~^]/g, ""))))),
      el("tbody", {}, rows.map(row))));
}

function facts(pairs) {
  return el("dl", {}, pairs.filter((pair) => pair[1]).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]).flat());
}

function failure(error) {
  return el("p", { class: "bad", role: "alert" }, error instanceof Refused ? error.message : `The console failed: ${error.message}`);
}

// What is shown anew keeps the place that was scrolled to, and the keyboard's.
function renew(place, ...children) {
  const held = place.contains(document.activeElement) ? document.activeElement : null;
  const regions = () => [...place.querySelectorAll(".scroll")], before = regions().map((each) => [each.getAttribute("aria-label"), each.scrollLeft, each === held]);
  place.replaceChildren(...children.flat().filter(Boolean));
  for (const [label, left, focused] of before) {
    const now = regions().find((each) => each.getAttribute("aria-label") === label);
    if (now) { now.scrollLeft = left; if (focused) now.focus({ preventScroll: true }); }
  }
  if (held?.hash) [...place.querySelectorAll("a")].find((each) => each.hash === held.hash)?.focus({ preventScroll: true });
}

// How wide a chart is in one of so many cards beside each other, in CSS pixels.
function room(cards = 1) {
  const total = Math.min(1088, innerWidth - 32), beside = Math.max(1, Math.min(cards, Math.floor((total + 16) / 320)));
  return Math.min(736, (total - 16 * (beside - 1)) / beside - 34);
}

const count = (number) => number.toLocaleString("en");
const since = (unix) => {
  const seconds = Math.max(0, Date.now() / 1000 - unix);
  for (const [most, each, unit] of [[90, 1, "s"], [5400, 60, "min"], [129600, 3600, "h"]]) {
    if (seconds < most) return `${Math.round(seconds / each)} ${unit} ago`;
  }
  return new Date(unix * 1000).toISOString().slice(0, 16).replace("T", " ");
};
const tensor = (spec) => `${spec.name}  ${spec.dtype}[${spec.shape.map((size) => (size < 0 ? "·" : size)).join(", ")}]`;

const tensors = (specs) => specs.map((spec) => el("code", { class: "tensor" }, tensor(spec)));

// Asks again and again while a view is shown and the page is looked at.
async function keep(number, seconds, look) {
  while (number === view) {
    if (!document.hidden) {
      try { await look(); } catch (error) {
        if (number !== view) return;
        if (error instanceof Refused && error.status === 401) { start(); return; }
        if (!(error instanceof Refused && [403, 404].includes(error.status))) tell(error.message);
        if (error instanceof Refused && [403, 404].includes(error.status)) { main.append(failure(error)); return; }
      }
    }
    await new Promise((done) => setTimeout(done, seconds * 1000));
  }
}

// A form whose button waits for what it began, and which shows what went wrong.
function form(button, fields, run) {
  const pressed = el("button", { class: "main", type: "submit" }, button), wrong = el("div", { class: "wide" });
  const made = el("form", {
    onsubmit: async (event) => {
      event.preventDefault();
      pressed.disabled = true; wrong.replaceChildren();
      try { await run(); } catch (error) { wrong.replaceChildren(failure(error)); } finally { pressed.disabled = false; }
    },
  }, fields, pressed);
  return [made, wrong];
}

// ---- views

async function models() {
  const found = (await ask("models")).models;
  show(el("h1", {}, "Models"),
    found.length ? found.map(model) : el("p", {}, "No model serves here. Put one into the models folder: a server with --watch finds it by itself, others when they start."));
}

function model(each) {
  const title = `${each.name} · version ${each.version}`;
  if (each.error) return el("section", { class: "card" }, el("h2", {}, title), el("p", { class: "bad" }, `Does not serve: ${each.error}`));
  const columns = each.inputs.concat(each.outputs).filter((spec) => spec.columns.length);
  return el("section", { class: "card" },
    el("h2", {}, title, each.default ? " · default" : "", (each.aliases || []).map((alias) => ` · ${alias}`).join("")),
    each.description ? el("p", {}, each.description) : null,
    facts([
      ["Served by", { predict: "predict, without memory", session: "sessions", generate: "generate, encoder and decoder" }[each.kind]],
      ["Inputs", tensors(each.encoder_inputs.length ? each.encoder_inputs : each.inputs)],
      ["Outputs", tensors(each.outputs.filter((spec) => !spec.name.startsWith("score:")))],
      ["Scores", each.outputs.filter((spec) => spec.name.startsWith("score:")).map((spec) => spec.name.slice(6).replace("_", " ").replace(":", " of ")).join(", ")],
      ["Memory", each.states.length ? `${each.states.map((state) => state.name).join(", ")}: ${count(each.bytes)} bytes a session` : ""],
      ["Columns", columns.map((spec) => `${spec.name}: ${spec.columns.join(", ")}`).join("; ")],
      ["Forecasts", each.forecasts.length ? `${each.forecasts.join(", ")}${each.draws ? ", with distributions" : ""}` : ""],
      ["Batched", each.batched.replace(/^Batched: /, "")],
      ["Proof", [each.proof, each.encoder_proof].filter(Boolean).join(" Encoder: ")],
      ["Came as", each.form.map((note) => `${note[0]}: ${note[1]}`).join("; ")],
      ["So far", `${count(each.batches)} batches, ${short(each.rows / Math.max(1, each.batches))} rows each; ${count(each.sessions)} sessions in memory`],
      ["Digest", el("code", {}, `${each.digest.slice(0, 16)}…`)],
    ]),
    may("step") && el("p", { class: "buttons" }, link(`Try ${each.name}`, "try", each.name), each.kind === "session" ? link(`Sessions of ${each.name}`, "sessions", each.name) : null));
}

async function sessions(number, chosen = "", begun = "", from = "") {
  const names = [...new Set((await ask("models")).models.filter((each) => each.kind === "session").map((each) => each.name))];
  const which = el("select", {}, el("option", { value: "" }, "all models"), names.map((name) => el("option", { value: name, selected: name === chosen }, name)));
  const prefix = el("input", { type: "search", autocomplete: "off", spellcheck: "false", value: begun });
  const place = el("div"), kept = history.state?.pages ?? [], pages = !from ? [""] : kept.at(-1) === from ? [...kept] : ["", from];
  const turn = (to) => { to(); again(); };
  const before = el("button", { type: "button", disabled: true, onclick: () => turn(() => pages.pop()) }, "Page before");
  const next = el("button", { type: "button", disabled: true, onclick: () => turn(() => pages.push(next.after)) }, "Next page"), told = el("span", { class: "quiet" });
  const look = async () => {
    if (number !== view) return;
    const after = pages.at(-1), asked = { model: which.value, prefix: prefix.value, after, size: 50 };
    // Who comes back finds what was looked for.
    history.replaceState({ pages: [...pages] }, "", `#/${["sessions", asked.model, asked.prefix, after].map(encodeURIComponent).join("/").replace(/\/+$/, "")}`);
    const found = await ask("sessions", { query: asked });
    if (number !== view || after !== pages.at(-1) || prefix.value !== asked.prefix) return;
    const rows = found.sessions.map((each) => [link(each.id, "session", each.model, each.id), each.model, String(each.version), count(each.position), count(each.durable), `${each.where}${each.streamed ? ", open in a client" : ""}`, since(each.used)]);
    renew(place,
      rows.length ? table("Sessions", ["Session", "Model?", "Version#?", "Position#", "Durable#?", "Where?", "Last step"], rows) : el("p", {}, asked.prefix || asked.model ? "No session is called so." : "There are no sessions yet."));
    const held = document.activeElement; // A button that can be pressed no more would let go of the keyboard.
    before.disabled = pages.length < 2; next.disabled = !found.next; next.after = found.next;
    if (held === before && before.disabled) next.focus();
    if (held === next && next.disabled) before.focus();
    told.textContent = pages.length > 1 ? `Page ${pages.length}` : "";
  };
  const again = () => look().catch((error) => place.replaceChildren(failure(error)));
  const anew = () => { pages.splice(0, pages.length, ""); again(); };
  which.addEventListener("change", anew);
  prefix.addEventListener("input", () => { clearTimeout(anew.timer); anew.timer = setTimeout(anew, 150); });
  show(el("h1", {}, "Sessions"), el("form", { onsubmit: (event) => { event.preventDefault(); anew(); } }, field("Model", which), field("Id begins with", prefix)), place, el("p", { class: "buttons" }, before, next, told));
  await again();
  let first = true;
  await keep(number, 5, async () => { if (first) first = false; else await look(); });
}

async function session(number, name, id) {
  const about = el("div"), chart = el("div", { class: "grid" }), wrong = el("div"), seen = [];
  const query = { model: name, id };
  let last = 0;
  const copy = el("input", { value: `${id}-copy`, autocomplete: "off", spellcheck: "false" });
  const sure = el("button", { type: "button", class: "danger", onclick: remove }, "Delete");
  async function remove() {
    if (sure.textContent === "Delete") { sure.textContent = "Delete for ever?"; setTimeout(() => { sure.textContent = "Delete"; }, 5000); return; }
    try { await ask("delete", { body: query }); tell(`${id} is deleted`); location.hash = "#/sessions"; } catch (error) { wrong.replaceChildren(failure(error)); }
  }
  async function snapshot() {
    try {
      const answer = await send("snapshot", { query }), url = URL.createObjectURL(await answer.blob());
      const made = el("a", { href: url, download: `${id.replace(/[^\w.-]/g, "_")}-${answer.headers.get("X-Position")}.safetensors` });
      made.click();
      setTimeout(() => URL.revokeObjectURL(url), 60000);
      tell(`a snapshot at position ${answer.headers.get("X-Position")}`);
    } catch (error) { wrong.replaceChildren(failure(error)); }
  }
  const [fork, forked] = form("Fork", [field("Id of the copy", copy)], async () => {
    const made = await ask("fork", { body: { ...query, fork: copy.value } });
    tell(`${made.id} is a copy at position ${count(made.position)}`);
    location.hash = `#/session/${encodeURIComponent(name)}/${encodeURIComponent(made.id)}`;
  });
  show(el("h1", {}, `Session ${id}`), about,
    el("div", { class: "buttons" }, el("button", { type: "button", onclick: snapshot }, "Snapshot"), sure, link("Step it", "try", name, id)),
    fork, forked, wrong,
    el("h2", {}, "Inputs and outputs, live"), chart);
  await keep(number, 0.5, async () => {
    const found = await ask("watch", { query: { ...query, since: last } });
    if (number !== view) return;
    const one = found.session;
    about.replaceChildren(facts([
      ["Model", `${one.model}, version ${one.version}`], ["Position", count(one.position)], ["Durable", `${count(one.durable)}${one.durable < one.position ? `, ${count(one.position - one.durable)} behind` : ""}`],
      ["Where", one.where + (one.streamed ? ", open in a client" : "") + (one.ephemeral ? ", ends with its caller" : "")], ["Epoch", String(one.epoch)], ["Last step", since(one.used)], ["Began at", one.origin ? count(one.origin) : ""],
    ]));
    if (found.count < last) seen.length = 0;
    if (found.steps.length || !chart.firstChild || !seen.length) {
      seen.push(...found.steps);
      seen.splice(0, Math.max(0, seen.length - 240));
      chart.replaceChildren(...watched(seen, one));
    }
    last = found.count;
  });
}

function watched(seen, one) {
  if (!seen.length) {
    const far = one.where.startsWith("with the server");
    return [el("p", { class: "quiet" }, far ? `It is ${one.where}, whose console shows its steps; here is what was saved of it.` : "Nothing was applied since this page is open. Steps appear as they come.")];
  }
  const cards = Object.keys(seen.at(-1).inputs).length + Object.keys(seen.at(-1).outputs).length;
  return ["inputs", "outputs"].flatMap((kind) => Object.keys(seen.at(-1)[kind]).map((name) => {
    const places = Math.max(...seen.map((step) => step[kind][name]?.length ?? 0));
    const series = Array.from({ length: places }, (_, place) => ({
      label: places > 1 ? `${name}[${place}]` : name,
      points: seen.map((step) => [step.position, number(step[kind][name]?.[place])]),
    }));
    return el("section", { class: "card" }, el("h2", {}, `${kind === "inputs" ? "Input" : "Output"} ${name}`), lines(`${name} by position`, series, [], room(cards)));
  }));
}

const number = (value) => (value === true ? 1 : value === false ? 0 : value ?? null);

const WHY = {
  serial: "the model runs its rows one by one", time: "more would have taken longer than a batch may", most: "a batch has no more rows",
  slices: "what else waited has steps of another length or shape, or is of another class", busy: "what else waited comes behind an earlier chunk of its session", all: "nothing else waited for the model",
};

async function live(number) {
  const place = el("div", { class: "grid" }), workers = el("div"), others = el("div");
  const rates = [];
  let before = null, at = 0;
  show(el("h1", {}, "Live"), el("p", { class: "quiet" }, "Since the page is open, second by second."), place, workers, el("h2", {}, "Servers on this store"), others);
  const replicas = async () => {
    const found = (await ask("replicas")).replicas;
    renew(others, found.length ? table("Servers", ["Address", "Sessions in use#", "Server?"], found.map((each) => [each.address + (each.worker !== undefined ? ` (worker ${each.worker})` : each.own ? " (this one)" : ""), count(each.sessions), each.server])) : el("p", { class: "quiet" }, "The store names no server."));
  };
  let turn = 0;
  await keep(number, 1, async () => {
    if (turn++ % 5 === 0) await replicas();
    const found = await ask("statistics"), now = performance.now();
    if (number !== view) return;
    if (before) {
      const seconds = (now - at) / 1000, change = (name) => Math.max(0, found.all[name] - before.all[name]) / seconds; // A worker that starts again counts anew.
      rates.push([rates.length ? rates.at(-1)[0] + 1 : 0, change("steps"), change("batches"), change("rows") / (change("batches") || 1)]);
      if (rates.length > 120) rates.shift();
      const less = (now, then) => now.map((value, index) => Math.max(0, value - (then?.[index] ?? 0)));
      const total = less(found.all.sizes, live.first.all.sizes);
      const why = Object.entries(found.all.why).map(([name, value]) => [name, Math.max(0, value - (live.first.all.why[name] ?? 0))]).filter((each) => each[1]);
      const calls = Object.entries(found.calls).map(([name, counts]) => [name, less(counts, live.first.calls[name])]).filter((each) => each[1].some(Boolean));
      const wide = room(7);
      renew(place,
        el("section", { class: "card" }, el("h2", {}, "Steps and batches a second"), lines("Steps and batches a second", [{ label: "steps", points: rates.map((each) => [each[0], each[1]]) }, { label: "batches", points: rates.map((each) => [each[0], each[2]]) }], [], wide)),
        el("section", { class: "card" }, el("h2", {}, "Rows of a batch"), batches("Batches by their rows", total, (index) => String(2 ** index), wide)),
        el("section", { class: "card" }, el("h2", {}, "Wait until a batch runs"), batches("Batches by how long their oldest work waited", less(found.all.waits, live.first.all.waits), micro, wide)),
        el("section", { class: "card" }, el("h2", {}, "Run of a batch"), batches("Batches by how long they ran", less(found.all.runs, live.first.all.runs), micro, wide)),
        el("section", { class: "card" }, el("h2", {}, "Why batches were not larger"), why.length ? table("Why batches were not larger", ["Reason~", "Batches#"], why.map((each) => [WHY[each[0]] ?? each[0], count(each[1])])) : el("p", { class: "quiet" }, "No batch ran meanwhile.")),
        el("section", { class: "card" }, el("h2", {}, "Latency of calls"), calls.length ? table("Latency of calls", ["Call", "Calls#", "Half below#", "99 % below#"], calls.map(([name, counts]) => [name, count(sum(counts)), micro(quantile(counts, 0.5)), micro(quantile(counts, 0.99))])) : el("p", { class: "quiet" }, "No call ended meanwhile. Streams count when they end.")),
        el("section", { class: "card" }, el("h2", {}, "Now"), facts([["Sessions", `${count(found.sessions)} in memory`], ["Streams", count(found.streams)], ["Calls", `${count(found.under_way)} under way`], ["Queued", `${count(found.queued)} chunks`], ["Refused", `${count(found.all.failed)} chunks since the start`], ["Store", found.store_failures ? el("span", { class: "bad" }, `${count(found.store_failures)} saves failed in a row`) : "takes what is saved"]])));
    } else live.first = found;
    if (found.workers) {
      const columns = ["sessions", "streams", "steps", "batches", "failed", "queued"];
      renew(workers, el("h2", {}, "Workers"), table("Workers", ["Worker#", "Sessions#", "Streams#", "Steps#", "Batches#", "Refused#", "Queued#"], found.workers.map((each) => [String(each.worker), ...columns.map((name) => count(each[name]))])));
    }
    before = found; at = now;
  });
}

const sum = (counts) => counts.reduce((total, each) => total + each, 0);
function quantile(counts, share) {
  let left = sum(counts) * share;
  for (let index = 0; index < counts.length; index++) { left -= counts[index]; if (left <= 0) return index; }
  return counts.length - 1;
}
const two = (value) => String(Number(value.toPrecision(2)));
const micro = (index) => (2 ** index < 1000 ? `${2 ** index} µs` : 2 ** index < 1e6 ? `${two(2 ** index / 1000)} ms` : `${two(2 ** index / 1e6)} s`);
const batches = (label, counts, name, width) => (counts.some(Boolean) ? bars(label, trimmed(counts, name), width) : el("p", { class: "quiet" }, "No batch ran meanwhile."));
function trimmed(counts, name) {
  const first = counts.findIndex(Boolean), last = counts.findLastIndex(Boolean);
  return counts.slice(first, last + 1).map((value, index) => [`≤ ${name(first + index)}`, value]);
}

async function refusals(number) {
  const place = el("div");
  show(el("h1", {}, "Refusals"), el("p", { class: "quiet" }, "What callers were told lately, and what to do about it; the newest first. The server keeps 200."), place);
  await keep(number, 2, async () => {
    const found = (await ask("refusals")).refusals;
    if (number !== view) return;
    renew(place, found.length ? table("Refusals", ["Reason^", "What was said~", "Times#?", "Last"], found.map((each) => [el("code", { class: "parts" }, each.reason.split(/(?<=_)/).flatMap((part) => [part, el("wbr")])), each.message, count(each.count), el("span", { class: "whole" }, since(each.last))])) : el("p", {}, "Nobody was refused anything since the server started."));
  });
}

// ---- trying

const sample = (spec, steps) => {
  const fill = (shape) => (shape.length ? Array.from({ length: Math.max(1, shape[0]) }, () => fill(shape.slice(1))) : spec.dtype === "bool" ? false : 0);
  return steps === null ? fill(spec.shape) : Array.from({ length: steps }, () => fill(spec.step));
};

function inputs(specs, steps, before = "") {
  const boxes = specs.map((spec) => {
    const box = el("textarea", { spellcheck: "false" });
    if (!spec.text) box.value = JSON.stringify(sample(spec, steps));
    return [spec, box];
  });
  const read = () => Object.fromEntries(boxes.map(([spec, box]) => {
    const text = box.value.trim();
    if (spec.text && !text.startsWith("[")) return [spec.name, text];
    try { return [spec.name, JSON.parse(text.startsWith("[") ? text : `[${text.split(/[\s,;]+/).filter(Boolean).join(",")}]`)]; } catch { throw new Error(`${spec.name} is no list of numbers; expected JSON, or numbers with commas`); }
  }));
  const name = (spec) => `${before}${spec.name}: ${spec.text ? "text, or tokens as " : ""}${spec.dtype}, ${steps === null ? `shape [${spec.shape.map((size) => (size < 0 ? "any" : size)).join(", ")}]` : `steps of shape [${spec.step.join(", ")}]`}${spec.columns.length ? ` (${spec.columns.join(", ")})` : ""}`;
  return [boxes.map(([spec, box]) => field(name(spec), box, true)), read];
}

async function attempt(_number, chosen, id) {
  const found = (await ask("models")).models.filter((each) => !each.error && each.default);
  if (!found.length) { show(el("h1", {}, "Try"), el("p", {}, "No model serves here.")); return; }
  const which = el("select", {}, found.map((each) => el("option", { value: each.name, selected: each.name === chosen }, each.name)));
  const place = el("div");
  const change = () => {
    const each = found.find((one) => one.name === which.value);
    place.replaceChildren(...{ predict: tryPredict, session: trySession, generate: tryGenerate }[each.kind](each, id ?? "console"));
  };
  which.addEventListener("change", change);
  show(el("h1", {}, "Try"), el("form", { onsubmit: (event) => event.preventDefault() }, field("Model", which)), place);
  change();
}

const result = (answer) => el("pre", { tabindex: "0", role: "region", "aria-label": "Answer" }, JSON.stringify(answer, null, 1));

function classes(each, answer) {
  const spec = each.outputs.find((one) => one.classes.length);
  const scores = spec && answer.outputs[spec.name];
  if (!scores) return null;
  const flat = scores.flat(9);
  if (flat.length !== spec.classes.length) return null;
  // As client.classify has it: what is not positive, or does not add up to 1, is the logarithm of a share.
  const total = sum(flat), shares = flat.every((score) => score >= 0) && Math.abs(total - 1) < 1e-3;
  const grown = flat.map((score) => (shares ? score : Math.exp(score - Math.max(...flat)))), whole = sum(grown);
  const best = grown.map((score) => score / whole).map((score, at) => [spec.classes[at], score]).sort((a, b) => b[1] - a[1]).slice(0, 10);
  return bars(`Probabilities by ${spec.name}`, best, room());
}

function tryPredict(each) {
  const [boxes, read] = inputs(each.inputs, null), place = el("div", { "aria-live": "polite" });
  const [made, wrong] = form("Predict", boxes, async () => {
    const answer = await ask("predict", { body: { model: each.name, inputs: read() } });
    place.replaceChildren(...[classes(each, answer), result(answer)].filter(Boolean));
  });
  return [made, wrong, place];
}

function trySession(each, id) {
  const name = el("input", { value: id, autocomplete: "off", spellcheck: "false" }), place = el("div", { "aria-live": "polite" });
  const [boxes, read] = inputs(each.inputs, 1);
  const [made, wrong] = form("Step", [field("Session, made if there is none", name), boxes], async () => {
    const answer = await ask("step", { body: { model: each.name, id: name.value, inputs: read() } });
    place.replaceChildren(el("p", { class: "good" }, `Applied: position ${count(answer.position)}, durable ${count(answer.durable)}. `, link("Look at the session", "session", each.name, name.value)), result(answer.outputs));
  });
  const shown = [el("section", { class: "card" }, el("h2", {}, "Step"), made, wrong, place)];
  if (each.forecasts.length) shown.push(tryForecast(each, name));
  return shown;
}

function tryForecast(each, name) {
  const horizon = el("input", { type: "number", min: "1", max: String(Math.min(1000, about.max_horizon)), value: "24" });
  const samples = el("input", { type: "number", min: "0", max: "500", value: each.draws ? "100" : "0" });
  const place = el("div", { class: "grid", "aria-live": "polite" });
  const [boxes, read] = inputs(each.future, 1, "Known beforehand, one step for all or each: ");
  const [made, wrong] = form("Forecast", [field("Steps", horizon), each.draws ? field("Paths drawn", samples) : null, boxes], async () => {
    const drawn = Number(samples.value), levels = drawn ? [0.05, 0.25, 0.75, 0.95] : [];
    const answer = await ask("forecast", { body: { model: each.name, id: name.value, horizon: Number(horizon.value), samples: drawn, quantiles: levels, future: read() } });
    place.replaceChildren(...Object.entries(answer.points).flatMap(([value, points]) => fans(value, points, answer.bands[value])));
  });
  return el("section", { class: "card" }, el("h2", {}, "Forecast"), el("p", { class: "quiet" }, "From where the session named above stands, which has taken a step at least; it does not move."), made, wrong, place);
}

// One fan for each of the first numbers of a value: points [steps, ...], bands [steps, ..., quantiles].
function fans(name, points, bands) {
  const flat = points.map((step) => [step].flat(9));
  const depth = bands && bands.map((step) => { const all = [step].flat(9), each = all.length / flat[0].length; return (place) => all.slice(place * each, (place + 1) * each); });
  return Array.from({ length: Math.min(6, flat[0].length) }, (_, place) => {
    const label = flat[0].length > 1 ? `${name}[${place}]` : name;
    const shades = depth ? [[0, 3], [1, 2]].map(([low, high]) => ({ series: 0, points: depth.map((step, at) => [at + 1, step(place)[low], step(place)[high]]) })) : [];
    return el("div", {}, lines(`Forecast of ${label} by steps ahead`, [{ label, points: flat.map((step, at) => [at + 1, step[place]]) }], shades, innerWidth < 700 ? room() : 640, innerWidth < 700 ? undefined : 220),
      depth ? el("p", { class: "quiet" }, "Shaded: half and nine tenths of the paths.") : null);
  });
}

function tryGenerate(each) {
  const source = el("textarea", { spellcheck: "false" }), warm = el("input", { type: "number", min: "0", step: "0.1", value: "0" });
  const place = el("p", { class: "text", role: "region", "aria-label": "Text" }), end = el("p", { class: "quiet", "aria-live": "polite" });
  const label = each.reads_text ? "Text" : "Tokens, with commas";
  const [made, wrong] = form("Generate", [field(label, source, true), field("Temperature, 0 for the likeliest", warm)], async () => {
    place.textContent = ""; end.textContent = "";
    const body = { model: each.name, temperature: Number(warm.value), seed: Math.floor(Math.random() * 2 ** 31) };
    if (each.reads_text) body.text = source.value; else body.tokens = source.value.split(/[\s,]+/).filter(Boolean).map(Number);
    const reader = (await send("generate", { body })).body.pipeThrough(new TextDecoderStream()).getReader();
    let left = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const all = (left + value).split("\n");
      left = all.pop();
      for (const told of all.filter(Boolean).map((line) => JSON.parse(line))) {
        if (told.error) throw new Refused(0, told.error);
        if (told.text !== undefined) place.textContent += told.text;
        else end.textContent = `${count(told.tokens)} tokens, log-probability ${short(told.log_probability)}`;
      }
    }
  });
  return [made, wrong, place, end];
}

// ---- the way

const VIEWS = { models, sessions, session, live, refusals, try: attempt };

async function go(focus) {
  const [name, ...more] = location.hash.replace(/^#\/?/, "").split("/").map((part) => { try { return decodeURIComponent(part); } catch { return part; } });
  const chosen = Object.hasOwn(VIEWS, name) ? name : "models", number = ++view;
  for (const each of document.querySelectorAll("nav a")) {
    if (each.hash === `#/${chosen === "session" ? "sessions" : chosen}`) each.setAttribute("aria-current", "page"); else each.removeAttribute("aria-current");
  }
  document.title = `${chosen[0].toUpperCase()}${chosen.slice(1)} · Statestream console`;
  if (focus) main.focus();
  try { await VIEWS[chosen](number, ...more); } catch (error) {
    if (number !== view) return;
    if (error instanceof Refused && error.status === 401) { start(); return; }
    show(el("h1", {}, document.title.split(" ·")[0]), failure(error), el("p", {}, el("button", { type: "button", onclick: () => go(true) }, "Try again")));
  }
}

function door(error) {
  view += 1;
  const token = el("input", { type: "password", autocomplete: "off", size: "44", required: true });
  const [made, wrong] = form("Enter", [field("Token", token)], async () => {
    sessionStorage.setItem(TOKEN, token.value.trim());
    await start(true);
  });
  show(el("h1", {}, "This server asks for a token"), el("p", {}, "The token of a client will do; it stays in this tab until it is closed."), made, wrong, sessionStorage.getItem(TOKEN) ? failure(error) : null);
  token.focus();
}

async function start(entered) {
  const leave = document.getElementById("leave");
  leave.hidden = !sessionStorage.getItem(TOKEN);
  try { about = await ask("about"); } catch (error) {
    if (error instanceof Refused && error.status === 401) { door(error); sessionStorage.removeItem(TOKEN); leave.hidden = true; } else show(el("h1", {}, "Statestream console"), failure(error), el("p", {}, el("button", { type: "button", onclick: () => start() }, "Try again")));
    return;
  }
  const who = about.asks ? `${about.tenant || "no tenant"}, ${about.rights.join(" and ")}` : "";
  document.getElementById("server").textContent = [`version ${about.version}`, about.device, `store ${about.store}`, `durability ${about.durability}`, about.workers ? `${about.workers} workers` : "", about.draining ? "leaving" : "", who].filter(Boolean).join(" · ");
  for (const [name, right] of [["sessions", "step"], ["live", "admin"], ["try", "step"]]) document.querySelector(`nav a[href="#/${name}"]`).hidden = !may(right);
  await go(entered);
}

document.getElementById("leave").addEventListener("click", () => { sessionStorage.removeItem(TOKEN); start(); });
addEventListener("hashchange", () => go(true));
start();
