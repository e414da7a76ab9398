// The live page: asks api/vitals every two seconds and updates the document in place.
// Nobody vouches for names that engines tell: data reaches the document as text, never as markup.

const POLL_MS = 2000;
const DEADLINE_MS = 5000;
const SPAN_SECONDS = 600;
const MARKS = 8; // engine colours in vitals.css; beyond them the letter tells engines apart
const MOST_PROBLEMS = 6;
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);

// ---- values as [number, unit]; null is "not known"

const formats = [0, 1, 2].map((n) => new Intl.NumberFormat("en", { minimumFractionDigits: n, maximumFractionDigits: n }));
const fixed = (v, n = 0) => formats[n].format(v);
const brief = (v) => fixed(v, v && v < 9.95 ? 1 : 0);
const three = (v) => fixed(v, v >= 99.95 ? 0 : v >= 9.995 ? 1 : 2);
const unit = (format) => (v) => (v === null || v === undefined ? null : format(v));

const count = unit((v) => [fixed(v), ""]);
const percent = unit((v) => [brief(100 * v), "%"]);
const busy = unit((v) => [fixed(100 * v), "%"]);
const seconds = unit((v) => (v >= 0.9995 ? [three(v), "s"] : [brief(1000 * v), "ms"]));
const tokens = unit((v) => [brief(v), "tok/s"]);
const perSecond = unit((v) => [brief(v), "/s"]);
const perMinute = unit((v) => [brief(60 * v), "/min"]);
const joules = unit((v) => [three(v), "J/token"]);
const watts = unit((v) => [fixed(v), "W"]);
const celsius = unit((v) => [fixed(v), "°C"]);
const gibibytes = unit((v) => [fixed(v / 2 ** 30, 1), "GiB"]);
const joined = (parts) => parts.filter(Boolean).join("\u00a0");

function ago(age) {
  const s = Math.max(0, Math.round(age));
  if (s < 90) return `${s} s ago`;
  return s < 5400 ? `${Math.round(s / 60)} min ago` : `${Math.round(s / 3600)} h ago`;
}

function ranges(numbers) {
  const found = [];
  for (const n of numbers.sort((a, b) => a - b)) {
    if (found.at(-1)?.[1] === n - 1) found.at(-1)[1] = n;
    else found.push([n, n]);
  }
  return found.map(([a, b]) => (a === b ? a : `${a}–${b}`)).join(", ");
}

// ---- the document

function make(name, className = "", ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function text(node, words) {
  if (node.textContent !== words) node.textContent = words;
}

function set(node, name, value) {
  if (!value && value !== "") node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** Keep one child per item, in order, without touching those that stay: focus and selection survive. */
function sync(parent, items, key, create, update) {
  const before = parent.rows ?? new Map();
  parent.rows = new Map(items.map((item) => [key(item), before.get(key(item)) ?? create(item)]));
  for (const [id, row] of before) if (!parent.rows.has(id)) row.node.remove();
  items.forEach((item, index) => {
    const row = parent.rows.get(key(item));
    if (parent.children[index] !== row.node) parent.insertBefore(row.node, parent.children[index] ?? null);
    update(row, item);
  });
}

function clone(id) {
  const node = $(id).content.firstElementChild.cloneNode(true);
  return { node, ...Object.fromEntries([...node.querySelectorAll("[data-f]")].map((f) => [f.dataset.f, f])) };
}

/** A number with its unit; what is missing is a dash that says why. */
function figure(caption = "") {
  const number = make("b");
  const rest = make("small");
  const node = make("span", "figure", number, rest);
  if (caption) node.append(make("span", "caption", caption));
  return {
    node,
    show(parts, why, title) {
      text(number, parts ? parts[0] : "–");
      text(rest, parts?.[1] ? `\u00a0${parts[1]}` : "");
      set(node, "title", parts ? title : why);
      set(number, "role", !parts && "img");
      set(number, "aria-label", !parts && why);
    },
  };
}

/** Lines over the last ten minutes that start at zero; what is missing is a gap. */
function sparkline(tracks) {
  const svg = document.createElementNS(SVG, "svg");
  set(svg, "viewBox", "0 0 100 30");
  set(svg, "preserveAspectRatio", "none");
  set(svg, "role", "img");
  const paths = ["area", "line", "dot", "second"].map((name) => {
    const path = document.createElementNS(SVG, "path");
    set(path, "class", name);
    return svg.appendChild(path);
  });
  const range = make("span", "range");
  return {
    node: make("span", "spark", svg, range),
    show(history, interval, scale) {
      const sets = tracks.map(([track]) => history[track] ?? []);
      const knowns = sets.map((points) => points.filter((v) => v !== null));
      const top = scale ?? (Math.max(...knowns.flat(), 0) || 1);
      const step = 99 / Math.max(1, SPAN_SECONDS / interval - 1);
      const drawn = sets.map((points) => {
        const at = points.map((v, i) => v !== null && [99.5 - (points.length - 1 - i) * step, 28.5 - 27 * Math.min(1, v / top)].map((n) => n.toFixed(1)));
        let [line, area] = ["", ""];
        at.forEach((point, i) => {
          if (!point) return;
          const starts = !at[i - 1];
          line += `${starts ? "M" : "L"}${point}`;
          area += `${starts ? `M${point[0]} 30` : ""}L${point}`;
          if (at[i + 1]) return;
          line += starts ? "h.1" : "";
          area += "V30Z";
        });
        return { line, area, dot: at.at(-1) ? `M${at.at(-1)}h.01` : "" };
      });
      ["area", "line", "dot"].forEach((name, i) => set(paths[i], "d", drawn[0][name]));
      set(paths[3], "d", drawn[1]?.line ?? "");
      const said = tracks.map(([, format, name], i) => {
        const [low, high] = [Math.min, Math.max].map((pick) => format(pick(...knowns[i])));
        return knowns[i].length ? `${name ?? ""} ${low[1] === high[1] ? low[0] : joined(low)}–${joined(high)}` : "";
      }).filter(Boolean).join(",").trim();
      text(range, said);
      set(svg, "aria-label", `last 10 minutes: ${said || "nothing yet"}`);
      set(this.node, "title", `last 10 minutes: ${said || "nothing yet"}`);
    },
  };
}

/** Cells of [name, explanation, figures [value, why it is missing, caption], lines [track, format, name], top]. */
function build(row, table) {
  row.parts = table.map(([name, title, figures, lines, scale]) => {
    const shown = figures.map(([, , caption]) => figure(caption));
    const spark = lines && sparkline(lines);
    const term = make("dt", "", name);
    set(term, "title", title);
    row.cells.append(make("div", name.split(" ")[0].toLowerCase(), term, make("dd", "", ...shown.map((f) => f.node)), ...(spark ? [make("dd", "", spark.node)] : [])));
    return { figures, shown, spark, scale };
  });
  return row;
}

function fill(row, item, interval, sick, drawing) {
  for (const { figures, shown, spark, scale } of row.parts) {
    figures.forEach(([value, why, , title], i) => shown[i].show(value(item), sick || why(item), title?.(item)));
    if (drawing) spark?.show(item.history, interval, scale?.(item));
  }
  row.node.dataset.level = item.level;
  sync(row.notes, item.notes, (note) => note.words.split(" (")[0], () => ({ node: make("li", "", make("i", "sign"), make("span")) }), ({ node }, note) => {
    node.dataset.level = note.level;
    text(node.lastChild, note.words + (note.at ? `, ${ago(latest.time - note.at)}` : ""));
  });
}

// ---- engines

const idle = (words) => (e) => (e.generation_tokens_per_second === null ? "needs two readings, the second is to come" : words);
const unknown = () => "the engine does not tell";
const quantiles = (of) => ["p50", "p95", "p99"].map((q) => [(e) => seconds(e[of][q]), idle("no requests in the last minute"), q]);
const noEnergy = (e) =>
  !e.gpus.length ? "no GPU is known for this engine"
  : e.generation_tokens_per_second === 0 ? "no tokens in the last minute"
  : idle("a GPU is shared between engines or reports no energy")(e);

const ENGINE = [
  ["Requests", "", [
    [(e) => count(e.running), unknown, "running"],
    [(e) => count(e.waiting), unknown, "waiting"],
    [(e) => perSecond(e.finished_per_second), idle("the engine does not tell"), "finished"],
  ], [["running", count, "running"], ["waiting", count, " waiting"]]],
  ["TTFT", "time to first token", quantiles("ttft_seconds"), [["ttft_p95_seconds", seconds, "p95"]]],
  ["TPOT", "time per output token", quantiles("tpot_seconds"), [["tpot_p95_seconds", seconds, "p95"]]],
  ["Tokens in", "prompt tokens", [[(e) => tokens(e.prompt_tokens_per_second), idle("the engine does not tell")]], [["prompt_tokens_per_second", tokens]]],
  ["Output", "generated tokens, and the energy of the engine's GPUs for each", [
    [(e) => tokens(e.generation_tokens_per_second), idle("the engine does not tell")],
    [(e) => joules(e.joules_per_output_token), noEnergy],
  ], [["generation_tokens_per_second", tokens]]],
  ["KV cache", "", [
    [(e) => percent(e.kv_cache_ratio), unknown, "used"],
    [(e) => percent(e.prefix_hit_ratio), idle("no prefix looked up in the last minute"), "prefix hits"],
    [(e) => perMinute(e.preemptions_per_second), idle("the engine does not tell"), "preempted"],
  ], [["kv_cache_ratio", percent]], () => 1],
];

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
  button.classList.add(mark);
  button.dataset.pin = button.title = server;
  button.prepend(make("b", "", letter));
  set(button, "aria-label", `Engine ${letter}, ${server}: keep it and its GPUs highlighted`);
  return button;
}

function engineRow(e) {
  const row = build(clone("engine-row"), ENGINE);
  row.node.id = tagOf(e.server).id;
  row.node.classList.add(tagOf(e.server).mark);
  tagButton(row.tag, e.server);
  return row;
}

function showEngine(row, e, data, drawing) {
  row.node.servers = [e.server];
  text(row.server, e.server);
  set(row.server, "title", `${e.server} at ${e.url}`);
  if (e.models.length || !row.model.title) { // one that is down does not tell: what it told last stays
    text(row.model, e.models[0] ? e.models[0] + (e.models[1] ? ` and ${e.models.length - 1} more` : "") : "");
    set(row.model, "title", e.models.join("\n"));
  }
  text(row.state, e.state);
  text(row.seats, e.gpus.length ? `on GPU ${ranges(e.gpus.map((gpu) => Number(gpu.gpu)))}` : data.gpus.length ? "GPU not known" : "");
  set(row.seats, "title", `known from: ${e.gpu_source}`);
  const ranks = e.engines.length > 1 && `${e.engines.length} data parallel ranks`;
  text(row.past, [ranks, e.restarts && `${e.restarts} restart${e.restarts > 1 ? "s" : ""} seen`].filter(Boolean).join(", "));
  const notes = e.up ? e.reasons : e.reasons.map((words) => words.replace(/^down \(\w+\): /, ""));
  fill(row, { ...e, notes: notes.map((words) => ({ words, level: e.level })) }, data.interval_seconds, !e.up && "the engine is down", drawing);
}

// ---- GPUs

const share = (gpu) => gpu.memory_used_bytes / gpu.memory_total_bytes;
const unsupported = () => "this GPU does not report it";
const also = (words, format, key) => (gpu) => gpu[key] !== null && `${words} ${joined(format(gpu[key]))}`;

const GPU = [
  ["Util", "share of time with a kernel running", [[(g) => busy(g.utilization_ratio), unsupported, "", also("SMs active", busy, "sm_active_ratio")]], [["utilization_ratio", busy]], () => 1],
  ["Power", "", [[(g) => watts(g.power_watts), unsupported, "", also("limit", watts, "power_limit_watts")]], [["power_watts", watts]], (g) => g.power_limit_watts ?? undefined],
  ["Temp", "", [[(g) => celsius(g.temperature_celsius), unsupported, "", also("memory", celsius, "memory_temperature_celsius")]], [["temperature_celsius", celsius]], () => 100],
  ["Memory", "", [[(g) => gibibytes(g.memory_used_bytes), unsupported, "", also("of", gibibytes, "memory_total_bytes")]]],
];

const gpuId = (gpu) => `gpu-${gpu.uuid || gpu.gpu}`;

function gpuTile(gpu) {
  const tile = build(clone("gpu-tile"), GPU);
  tile.node.id = gpuId(gpu);
  tile.bar = make("span");
  tile.total = make("span", "total");
  tile.cells.lastChild.append(make("dd", "bar", tile.bar), make("dd", "of", tile.total));
  return tile;
}

function showGpu(tile, gpu, data, drawing) {
  tile.node.servers = gpu.servers;
  const mark = gpu.servers.length ? tagOf(gpu.servers[0]).mark : "none";
  set(tile.node, "class", `gpu ${mark}${tile.node.classList.contains("lit") ? " lit" : ""}`);
  text(tile.title, `GPU ${gpu.gpu}`);
  set(tile.title, "title", `${gpu.name}\n${gpu.uuid}`);
  text(tile.word, gpu.level);
  sync(tile.tags, gpu.servers.length ? gpu.servers : [""], String, (server) => ({
    node: server ? tagButton(make("button", "tag", make("span", "", server)), server) : make("span", "idle", "no engine"),
  }), () => {});
  fill(tile, gpu, data.interval_seconds, !gpu.up && "this GPU cannot be read", drawing);
  tile.bar.style.width = `${100 * (Math.min(1, share(gpu)) || 0)}%`;
  text(tile.total, gpu.memory_total_bytes ? `of ${joined(gibibytes(gpu.memory_total_bytes))}` : "");
}

// ---- one update

const narrow = matchMedia("(max-width: 600px)");
let latest = null;
let latestAt = 0;

function render(data) {
  const { engines, gpus, verdict, messages } = data;
  const rows = engines.length > 16 ? "micro" : engines.length > 3 ? "dense" : "roomy";
  const tiles = gpus.length > 32 ? "micro" : gpus.length > 8 || narrow.matches ? "dense" : "roomy";
  engines.forEach((e) => tagOf(e.server)); // letters go by the order of engines, not of GPUs
  $("verdict").dataset.level = verdict.level;
  text($("headline"), verdict.words);
  text($("totals"), verdict.totals);
  document.title = `${{ critical: "!! ", warning: "! " }[verdict.level] ?? ""}${verdict.words}`;
  const more = verdict.problems.length - MOST_PROBLEMS;
  const problems = verdict.problems.slice(0, MOST_PROBLEMS);
  if (more > 0) problems.push({ level: "note", who: "", words: `and ${more} more` });
  sync($("problems"), problems, (p) => p.server + p.uuid, () => ({ node: make("li", "", make("i", "sign"), make("a"), make("span")) }), ({ node }, p) => {
    node.dataset.level = p.level;
    set(node.children[1], "href", p.who && `#${p.server ? tagOf(p.server).id : gpuId(p)}`);
    text(node.children[1], p.who);
    text(node.lastChild, p.words);
  });
  $("scene").hidden = !data.scene;
  text($("scene"), `simulated: scene ${data.scene}`);
  $("engines").hidden = $("gpus").hidden = false;
  $("engines").dataset.density = rows;
  $("gpus").dataset.density = tiles;
  // what is said about engines comes last, and only when there is none
  empty($("no-engine"), engines.length ? "" : messages.at(-1));
  empty($("no-gpu"), messages.slice(0, engines.length ? undefined : -1).join(" "));
  sync($("engine-list"), engines, (e) => `${e.server} ${e.url}`, engineRow, (row, e) => showEngine(row, e, data, rows !== "micro"));
  sync($("gpu-list"), gpus, gpuId, gpuTile, (tile, gpu) => showGpu(tile, gpu, data, tiles !== "micro"));
  const kinds = Object.groupBy(gpus, (gpu) => gpu.name);
  text($("kinds"), Object.entries(kinds).map(([name, all]) => `${all.length} × ${name}`).join(", "));
  text($("version"), `vllm-vitals ${data.version}`);
  highlight();
}

function empty(node, words) {
  node.hidden = !words;
  if (node.textContent === words) return;
  const parts = words.split(/(vllm-vitals [a-z]+(?: --[a-z]+)?(?: https?:\/\/[^\s,]+)?)/);
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
  } catch {} // said by its default
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
  if (event.pointerType === "touch") return;
  const servers = event.target.closest?.(".engine, .gpu")?.servers ?? null;
  if (servers === hovered) return;
  hovered = servers;
  highlight();
}

function pin(server) {
  pinned = server === pinned ? null : server;
  hovered = null;
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
  wear(THEMES.indexOf(localStorage.getItem("vllm-vitals-theme")));
} catch {
  wear(0); // storage is switched off
}
$("theme").addEventListener("click", () => {
  wear((theme + 1) % THEMES.length);
  try {
    localStorage.setItem("vllm-vitals-theme", THEMES[theme]);
  } catch {} // then it lasts as long as the page
});

$("columns").append(...ENGINE.map(([name]) => make("span", "", name)));
ask();
