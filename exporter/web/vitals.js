// The live page: asks api/vitals every two seconds and updates the document in place.
// Nobody vouches for names that engines tell: data reaches the document as text, never as markup.

const POLL_MS = 2000;
const DEADLINE_MS = 5000;
const SPAN_SECONDS = 600;
const MARKS = 8; // engine colours in vitals.css; beyond them the letter tells engines apart
const MOST_PROBLEMS = 6;

const $ = (id) => document.getElementById(id);

// ---- values as [number, unit]

const digits = [0, 1, 2].map((n) => new Intl.NumberFormat("en", { minimumFractionDigits: n, maximumFractionDigits: n }));
const fixed = (v, n = 0) => digits[n].format(v);
const brief = (v) => fixed(v, v && v < 9.95 ? 1 : 0);
const three = (v) => fixed(v, v >= 99.95 ? 0 : v >= 9.995 ? 1 : 2);

const count = (v) => [fixed(v), ""];
const percent = (v) => [brief(100 * v), "%"];
const wholePercent = (v) => [fixed(100 * v), "%"];
const seconds = (v) => (v >= 0.9995 ? [three(v), "s"] : [brief(1000 * v), "ms"]);
const tokens = (v) => [brief(v), "tok/s"];
const perSecond = (v) => [brief(v), "/s"];
const perMinute = (v) => [brief(60 * v), "/min"];
const joules = (v) => [three(v), "J/token"];
const watts = (v) => [fixed(v), "W"];
const celsius = (v) => [fixed(v), "°C"];
const gibibytes = (v) => [fixed(v / 2 ** 30, 1), "GiB"];
const joined = (parts) => parts.filter(Boolean).join("\u00a0");

function ago(age) {
  const s = Math.max(0, Math.round(age));
  if (s < 90) return `${s} s ago`;
  return s < 5400 ? `${Math.round(s / 60)} min ago` : `${Math.round(s / 3600)} h ago`;
}

// ---- what an engine's row and a GPU's tile show

const missing = (words) => (e) => (e.finished_per_second === null ? "the second reading is still to come" : words);
const untold = missing("the engine does not tell");
const quantiles = (of) => ["p50", "p95", "p99"].map((q) => [`${of}.${q}`, seconds, q, missing("no requests in the last minute")]);
const noEnergy = (e) => {
  if (!e.gpus.length) return "no GPU is known for this engine";
  return missing(e.generation_tokens_per_second ? "a GPU is shared or reports no energy" : "no tokens in the last minute")(e);
};

// name, explanation, figures [key, format, caption, why it is missing], lines [track, format, name], top of their scale
const ENGINE = [
  ["Requests", "", [["running", count, "running", untold], ["waiting", count, "waiting", untold], ["finished_per_second", perSecond, "finished", untold]],
    [["running", count, "running"], ["waiting", count, "waiting"]]],
  ["TTFT", "time to first token", quantiles("ttft_seconds"), [["ttft_p95_seconds", seconds, "p95"]]],
  ["TPOT", "time per output token", quantiles("tpot_seconds"), [["tpot_p95_seconds", seconds, "p95"]]],
  ["Input", "", [["prompt_tokens_per_second", tokens, "prompt tokens", untold]], [["prompt_tokens_per_second", tokens]]],
  ["Output", "", [["generation_tokens_per_second", tokens, "tokens", untold], ["joules_per_output_token", joules, "energy", noEnergy]],
    [["generation_tokens_per_second", tokens]]],
  ["KV cache", "", [["kv_cache_ratio", percent, "used", untold], ["prefix_hit_ratio", percent, "prefix hits", missing("no prefix looked up in the last minute")],
    ["preemptions_per_second", perMinute, "preempted", untold]], [["kv_cache_ratio", percent]], () => 1],
];
const unread = () => "this GPU does not report it";
const GPU = [
  ["Util", "", [["utilization_ratio", wholePercent, "", unread, ["SMs active", "sm_active_ratio"]]], [["utilization_ratio", wholePercent]], () => 1],
  ["Power", "", [["power_watts", watts, "", unread, ["limit", "power_limit_watts"]]], [["power_watts", watts]], (gpu) => gpu.power_limit_watts],
  ["Temp", "", [["temperature_celsius", celsius, "", unread, ["memory", "memory_temperature_celsius"]]], [["temperature_celsius", celsius]], () => 100],
  ["Memory", "", [["memory_used_bytes", gibibytes, "", unread]]],
];

// ---- the document

function make(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function text(node, words) {
  if (node.textContent !== words) node.textContent = words;
}

function set(node, name, value) {
  if (!value) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** Keep one child per item, in order, without touching those that stay: focus and selection survive. */
function sync(parent, items, key, create, update) {
  const before = parent.rows ?? new Map();
  parent.rows = new Map(items.map((item, i) => [key(item, i), before.get(key(item, i)) ?? create(item)]));
  for (const [id, row] of before) if (!parent.rows.has(id)) row.node.remove();
  [...parent.rows.values()].forEach((row, i) => {
    if (parent.children[i] !== row.node) parent.insertBefore(row.node, parent.children[i] ?? null);
    update?.(row, items[i]);
  });
}

function clone(id) {
  const node = $(id).content.firstElementChild.cloneNode(true);
  return { node, ...Object.fromEntries([...node.querySelectorAll("[data-f]")].map((f) => [f.dataset.f, f])) };
}

/** A number with its unit; what is missing is a dash that says why. */
function figure([key, format, caption, why, also]) {
  const number = make("b");
  const unit = make("small");
  const node = make("span", "figure", number, unit);
  if (caption) node.append(make("span", "caption", caption));
  const show = (item, data, down) => {
    const value = key.split(".").reduce((of, name) => of[name], item);
    const reason = value === null && (down || why(item));
    const [words, symbol] = reason ? ["–", ""] : format(value);
    text(number, words);
    text(unit, symbol && `\u00a0${symbol}`);
    set(node, "title", reason || (also && item[also[1]] !== null && `${also[0]} ${joined(format(item[also[1]]))}`));
    set(number, "role", reason && "img");
    set(number, "aria-label", reason);
  };
  return { node, show };
}

/** Lines over the last ten minutes that start at zero; what is missing is a gap. */
function sparkline(tracks, scale) {
  const draw = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);
  const svg = draw("svg");
  set(svg, "viewBox", "0 0 100 30");
  set(svg, "preserveAspectRatio", "none");
  set(svg, "role", "img");
  const paths = Object.fromEntries(["area", "line", "dot", "second"].map((name) => [name, svg.appendChild(draw("path"))]));
  for (const name in paths) set(paths[name], "class", name);
  const range = make("span", "range");
  const node = make("span", "spark", svg, range);
  const show = (item, data) => {
    if (node.closest("[data-density=micro]")) return; // not shown there
    const sets = tracks.map(([track]) => item.history[track] ?? []);
    const seen = sets.map((points) => points.filter((v) => v !== null));
    const top = scale?.(item) ?? (Math.max(...seen.flat(), 0) || 1);
    const step = 99 / Math.max(1, SPAN_SECONDS / data.interval_seconds - 1);
    sets.forEach((points, which) => {
      let [line, area] = ["", ""];
      const at = points.map((v, i) => v !== null && `${(99.5 - (points.length - 1 - i) * step).toFixed(1)} ${(28.5 - 27 * Math.min(1, v / top)).toFixed(1)}`);
      at.forEach((point, i) => {
        if (!point) return;
        line += (at[i - 1] ? "L" : "M") + point + (at[i - 1] || at[i + 1] ? "" : "h.1");
        area += (at[i - 1] ? "L" : `M${point.split(" ")[0]} 30L`) + point + (at[i + 1] ? "" : "V30Z");
      });
      if (which) return set(paths.second, "d", line);
      set(paths.line, "d", line);
      set(paths.area, "d", area);
      set(paths.dot, "d", at.at(-1) && `M${at.at(-1)}h.01`);
    });
    const words = tracks.map(([, format, name = ""], i) => {
      if (!seen[i].length) return "";
      const [low, high] = [Math.min, Math.max].map((pick) => format(pick(...seen[i])));
      return `${name} ${low[1] === high[1] ? low[0] : joined(low)}–${joined(high)}`.trim();
    }).filter(Boolean).join(", ");
    text(range, words);
    for (const [of, name] of [[svg, "aria-label"], [node, "title"]]) set(of, name, `last 10 minutes: ${words || "nothing yet"}`);
  };
  return { node, show };
}

function build(template, table) {
  const row = clone(template);
  row.parts = table.flatMap(([name, title, figures, lines, scale]) => {
    const shown = figures.map(figure);
    const spark = lines && sparkline(lines, scale);
    const cell = make("div", "", make("dt", "", name), make("dd", "", ...shown.map((part) => part.node)), ...(lines ? [make("dd", "", spark.node)] : []));
    set(cell.firstChild, "title", title);
    row.cells.append(cell);
    return lines ? [...shown, spark] : shown;
  });
  return row;
}

const signed = (name) => () => ({ node: make("li", "", make("i", "sign"), make(name), make("span")) });

function fill(row, item, down, data) {
  row.node.dataset.level = item.level;
  for (const part of row.parts) part.show(item, data, down);
  sync(row.notes, item.notes, (_, i) => i, signed("span"), ({ node }, note) => {
    node.dataset.level = note.level;
    text(node.lastChild, note.words + (note.at ? `, ${ago(data.time - note.at)}` : ""));
  });
}

const tags = new Map(); // server -> letter and colour, for as long as the page is open

function tagOf(server) {
  const n = tags.size;
  if (!tags.has(server)) {
    const letter = String.fromCharCode(65 + (n % 26));
    tags.set(server, { id: `engine-${n}`, mark: `m${n % MARKS}`, letter: n < 26 ? letter : String.fromCharCode(64 + n / 26) + letter });
  }
  return tags.get(server);
}

function tagButton(button, server) {
  const { letter, mark } = tagOf(server);
  button.type = "button";
  button.className = `tag ${mark}`;
  button.dataset.pin = button.title = server;
  button.prepend(make("b", "", letter));
  set(button, "aria-label", `Engine ${letter}, ${server}: highlight with its GPUs`);
  return button;
}

function engineRow({ server }) {
  const row = build("engine-row", ENGINE);
  row.node.id = tagOf(server).id;
  row.node.classList.add(tagOf(server).mark);
  tagButton(row.tag, server);
  return row;
}

function showEngine(row, e, data) {
  row.node.servers = [e.server];
  text(row.server, e.server);
  set(row.server, "title", `${e.server} at ${e.url}`);
  const [model, ...others] = e.models;
  if (model) { // one that is down does not tell: what it told last stays
    text(row.model, model + (others.length ? ` and ${others.length} more` : ""));
    set(row.model, "title", e.models.join("\n"));
  }
  text(row.state, e.state);
  text(row.seats, e.gpu_indices ? `on GPU ${e.gpu_indices}` : data.gpus.length ? "GPU not known" : "");
  set(row.seats, "title", e.gpu_indices && `source: ${e.gpu_source}`);
  const past = [e.engines.length > 1 && `${e.engines.length} data parallel ranks`, e.restarts && `restarts seen: ${e.restarts}`];
  text(row.past, past.filter(Boolean).join(", "));
  fill(row, e, !e.up && "the engine is down", data);
}

const gpuId = (gpu) => `gpu-${gpu.uuid}`;

function gpuTile(gpu) {
  const tile = build("gpu-tile", GPU);
  tile.node.id = gpuId(gpu);
  tile.bar = make("i");
  tile.total = make("small");
  tile.cells.lastChild.append(make("dd", "bar", tile.bar));
  tile.cells.lastChild.children[1].append(tile.total);
  return tile;
}

function showGpu(tile, gpu, data) {
  tile.node.servers = gpu.servers;
  tile.node.className = `gpu ${gpu.servers.length ? tagOf(gpu.servers[0]).mark : ""}`;
  text(tile.title, `GPU ${gpu.gpu}`);
  set(tile.title, "title", `${gpu.name}\n${gpu.uuid}`);
  text(tile.word, gpu.level);
  sync(tile.tags, gpu.servers.length ? gpu.servers : [""], String, (server) => ({
    node: server ? tagButton(make("button", "", make("span", "", server)), server) : make("span", "past", "no engine"),
  }));
  fill(tile, gpu, !gpu.up && "this GPU cannot be read", data);
  const total = gpu.memory_total_bytes;
  text(tile.total, total ? `of ${gibibytes(total)[0]}` : "");
  tile.bar.style.width = `${total ? (100 * gpu.memory_used_bytes) / total : 0}%`;
}

// ---- one update

const narrow = matchMedia("(max-width: 600px)");
let latest = null;
let latestAt = 0;

function render(data) {
  const { engines, gpus, verdict, messages } = data;
  $("engines").dataset.density = engines.length > 16 ? "micro" : engines.length > 3 ? "dense" : "roomy";
  $("gpus").dataset.density = gpus.length > 32 ? "micro" : gpus.length > 8 || narrow.matches ? "dense" : "roomy";
  $("engines").hidden = $("gpus").hidden = false;
  engines.forEach((e) => tagOf(e.server)); // letters go by the order of engines, not of GPUs
  $("verdict").dataset.level = verdict.level;
  text($("headline"), verdict.words);
  text($("totals"), verdict.totals);
  document.title = ({ critical: "!! ", warning: "! " }[verdict.level] ?? "") + verdict.words;
  const problems = verdict.problems.slice(0, MOST_PROBLEMS);
  const more = verdict.problems.length - problems.length;
  if (more) problems.push({ level: "note", words: `and ${more} more` });
  sync($("problems"), problems, (p) => `${p.server}/${p.uuid}`, signed("a"), ({ node }, p) => {
    node.dataset.level = p.level;
    set(node.children[1], "href", p.who && `#${p.server ? tagOf(p.server).id : gpuId(p)}`);
    text(node.children[1], p.who ?? "");
    text(node.lastChild, p.words);
  });
  $("scene").hidden = !data.scene;
  text($("scene"), `simulated: scene ${data.scene}`);
  // what is said about engines comes last, and only when there is none
  empty($("no-engine"), engines.length ? "" : messages.at(-1));
  empty($("no-gpu"), messages.slice(0, engines.length ? undefined : -1).join(" "));
  sync($("engine-list"), engines, (e) => `${e.server} ${e.url}`, engineRow, (row, e) => showEngine(row, e, data));
  sync($("gpu-list"), gpus, gpuId, gpuTile, (tile, gpu) => showGpu(tile, gpu, data));
  const kinds = Object.entries(Object.groupBy(gpus, (gpu) => gpu.name));
  text($("kinds"), kinds.map(([name, all]) => `${all.length} × ${name}`).join(", "));
  text($("version"), `vllm-vitals ${data.version}`);
  highlight();
}

function empty(node, words) {
  node.hidden = !words;
  if (node.textContent === words) return;
  const parts = words.split(/(vllm-vitals [a-z]+(?: --[a-z]+)?(?: https?:[^\s,]+)?)/);
  node.replaceChildren(...parts.map((part, i) => (i % 2 ? make("code", "", part) : part)));
}

function lost(words) {
  document.body.classList.toggle("lost", Boolean(words));
  if (!words) return;
  $("verdict").dataset.level = "lost";
  text($("headline"), words);
  document.title = `? ${words}`;
}

const showAge = () => text($("age"), latest ? `last update ${ago((performance.now() - latestAt) / 1000)}` : "");

let timer = 0;
let asking = false;

async function ask() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  let data = null;
  let failure = "Connection to the exporter lost, retrying";
  try {
    const answer = await fetch("api/vitals", { signal: AbortSignal.timeout(DEADLINE_MS), cache: "no-store" });
    if (answer.ok) data = await answer.json();
    else failure = `The exporter answers with ${answer.status}, retrying`;
  } catch {} // the default says it
  asking = false;
  if (!document.hidden) timer = setTimeout(ask, POLL_MS);
  lost(data ? "" : failure);
  if (data) {
    [latest, latestAt] = [data, performance.now()];
    render(data);
  }
  showAge();
}

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : ask()));
narrow.addEventListener("change", () => latest && render(latest));
setInterval(showAge, 1000);

// ---- which engine sits on which GPU: hover or focus shows it, the letter keeps it shown

let hovered = null;
let pinned = null;

function highlight() {
  const on = hovered ?? [pinned];
  for (const node of document.querySelectorAll(".engine, .gpu")) node.classList.toggle("lit", node.servers.some((s) => on.includes(s)));
  for (const button of document.querySelectorAll("[data-pin]")) set(button, "aria-pressed", String(button.dataset.pin === pinned));
  document.body.classList.toggle("pinned", Boolean(pinned));
}

function hover(event) {
  if (event.pointerType === "touch") return; // a tap on the letter does it
  hovered = event.target.closest?.(".engine, .gpu")?.servers ?? null;
  highlight();
}

function pin(server) {
  [pinned, hovered] = [server === pinned ? null : server, null];
  highlight();
}

for (const name of ["pointerover", "focusin"]) document.addEventListener(name, hover);
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-pin]");
  if (button) pin(button.dataset.pin);
});
document.addEventListener("keydown", (event) => event.key === "Escape" && pin(null));

// ---- theme

const THEMES = ["auto", "light", "dark"];
let theme = 0;

function wear(index) {
  theme = Math.max(0, index);
  set(document.documentElement, "data-theme", THEMES[theme]);
  text($("theme"), `Theme: ${THEMES[theme]}`);
}

try {
  wear(THEMES.indexOf(localStorage.theme));
} catch {
  wear(0); // storage is switched off
}
$("theme").addEventListener("click", () => {
  wear((theme + 1) % THEMES.length);
  try {
    localStorage.theme = THEMES[theme];
  } catch {} // then it lasts as long as the page
});

$("columns").append(...ENGINE.map(([name]) => make("span", "", name)));
ask();
