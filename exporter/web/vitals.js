// The live page: asks api/vitals and updates the document in place. Nobody vouches for the names in it:
// data becomes text, never markup.

const POLL_MS = 2000;
const DEADLINE_MS = 5000;
const SPAN_SECONDS = 600;
const MARKS = 6; // colours in vitals.css; beyond them the letter tells engines apart

const $ = (id) => document.getElementById(id);

// values as [number, unit]

const digits = [0, 1, 2].map((n) => new Intl.NumberFormat("en", { minimumFractionDigits: n, maximumFractionDigits: n }));
const fixed = (v, n = 0) => digits[n].format(v);
const brief = (v) => fixed(v, v && v < 9.95 ? 1 : 0);
const three = (v) => fixed(v, v >= 99.95 ? 0 : v >= 9.995 ? 1 : 2);

const unit = (format, symbol, factor = 1) => (v) => [format(v * factor), symbol];
const count = unit(fixed, "");
const percent = unit(brief, "%", 100);
const busy = unit(fixed, "%", 100);
const seconds = (v) => (v < 0.9995 ? [brief(1000 * v), "ms"] : [three(v), "s"]);
const tokens = unit(brief, "tok/s");
const perSecond = unit(brief, "/s");
const perMinute = unit(brief, "/min", 60);
const joules = unit(three, "J/token");
const watts = unit(fixed, "W");
const celsius = unit(fixed, "°C");
const gibibytes = (v) => fixed(v / 2 ** 30, 1);
const memory = (v, gpu) => [gibibytes(v), gpu.memory_total_bytes ? `of ${gibibytes(gpu.memory_total_bytes)} GiB` : "GiB"];
const joined = ([number, symbol]) => number + (symbol && `\u00a0${symbol}`);

function ago(age) {
  const s = Math.max(0, Math.round(age));
  if (s < 90) return `${s} s ago`;
  return s < 5400 ? `${Math.round(s / 60)} min ago` : `${Math.round(s / 3600)} h ago`;
}

// what an engine's row and a GPU's tile show

const missing = (words) => (e) => (e.finished_per_second === null ? "needs a second reading" : words);
const untold = missing("the engine does not tell");
const quantiles = (of) => ["p50", "p95", "p99"].map((q) => [`${of}.${q}`, seconds, q, missing("no requests in the last minute")]);
const noPrefix = missing("no prefix lookups in the last minute");
const unread = () => "this GPU does not report it";
const noEnergy = missing("needs tokens in the last minute, and GPUs of its own that report energy");

// name, top of the lines (a number, a key, 0: their maximum), figures [key, format, caption, why it is missing],
// lines [key, format, name] when they show something else than the first figure
const ENGINE = [
  ["Requests", 0, [["running", count, "running"], ["waiting", count, "waiting"], ["finished_per_second", perSecond, "finished"]],
    [["running", count, "running"], ["waiting", count, "waiting"]]],
  ["TTFT", 0, quantiles("ttft_seconds"), [["ttft_p95_seconds", seconds, "p95"]]],
  ["TPOT", 0, quantiles("tpot_seconds"), [["tpot_p95_seconds", seconds, "p95"]]],
  ["Input", 0, [["prompt_tokens_per_second", tokens, "prompt tokens"]]],
  ["Output", 0, [["generation_tokens_per_second", tokens, "tokens"], ["joules_per_output_token", joules, "energy", noEnergy]]],
  ["KV cache", 1, [["kv_cache_ratio", percent, "used"], ["prefix_hit_ratio", percent, "prefix hits", noPrefix], ["preemptions_per_second", perMinute, "preempted"]]],
];
const GPU = [
  ["Util", 1, [["utilization_ratio", busy, "", unread]]],
  ["Power", "power_limit_watts", [["power_watts", watts, "", unread]]],
  ["Temp", 100, [["temperature_celsius", celsius, "", unread]]],
  ["Memory", 0, [["memory_used_bytes", memory, "", unread]], []],
];

// the document

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
function figure([key, format, caption, why = untold]) {
  const number = make("b");
  const rest = make("small");
  const node = make("span", "figure", number, rest);
  if (caption) node.append(make("span", "caption", caption));
  const show = (item, data, down) => {
    const value = key.split(".").reduce((of, name) => of[name], item);
    const reason = value == null && (down || why(item));
    const [words, symbol] = reason ? ["–", ""] : format(value, item);
    text(number, words);
    text(rest, symbol && `\u00a0${symbol}`);
    set(node, "title", reason);
    set(number, "role", reason && "img");
    set(number, "aria-label", reason);
  };
  return { node, show };
}

/** Lines over the last ten minutes that start at zero; what is missing is a gap. */
function sparkline(tracks, limit) {
  const { node, svg, area, line, dot, second, range } = clone("spark");
  const show = (item, data) => {
    if (node.closest(".micro")) return; // not shown there
    const sets = tracks.map(([track]) => item.history[track] ?? []);
    const seen = sets.map((points) => points.filter((v) => v !== null));
    const top = item[limit] ?? (Number(limit) || Math.max(...seen.flat()) || 1);
    const step = 99 / Math.max(1, SPAN_SECONDS / data.interval_seconds - 1);
    sets.forEach((points, which) => {
      let [stroke, fill] = ["", ""];
      const at = points.map((v, i) => v !== null && `${(99.5 - (points.length - 1 - i) * step).toFixed(1)} ${(28.5 - 27 * Math.min(1, v / top)).toFixed(1)}`);
      at.forEach((point, i) => {
        if (!point) return;
        stroke += (at[i - 1] ? "L" : "M") + point + (at[i - 1] || at[i + 1] ? "" : "h.1");
        fill += (at[i - 1] ? "L" : `M${point.split(" ")[0]} 30L`) + point + (at[i + 1] ? "" : "V30Z");
      });
      if (which) return set(second, "d", Math.max(...seen[1]) > 0 && stroke);
      set(line, "d", stroke);
      set(area, "d", fill);
      set(dot, "d", at.at(-1) && `M${at.at(-1)}h.01`);
    });
    const words = tracks.map(([, format, name], i) => {
      if (!seen[i].length) return "";
      const [low, high] = [Math.min, Math.max].map((pick) => format(pick(...seen[i])));
      return `${name} ${low[1] === high[1] ? low[0] : joined(low)}–${joined(high)}`.trim();
    }).filter(Boolean).join(", ");
    text(range, words);
    set(svg, "aria-label", `last 10 minutes: ${words || "nothing yet"}`);
    set(node, "title", svg.getAttribute("aria-label"));
  };
  return { node, show };
}

function build(template, table) {
  const row = clone(template);
  row.parts = table.flatMap(([name, limit, figures, lines = [[...figures[0].slice(0, 2), ""]]]) => {
    const shown = figures.map(figure);
    const drawn = lines.length ? [sparkline(lines, limit)] : [];
    const nodes = [shown, drawn].map((parts) => make("dd", "", ...parts.map((part) => part.node)));
    row.cells.append(make("div", "", make("dt", "", name), ...nodes));
    return [...shown, ...drawn];
  });
  return row;
}

const signed = (name) => () => ({ node: make("li", "", make("i", "sign"), make(name), make("span")) });

function judge(node, level) {
  node.dataset.level = level;
  node.classList.toggle("bad", level === "critical" || level === "warning");
}

function fill(row, item, down, data) {
  judge(row.node, item.level);
  for (const part of row.parts) part.show(item, data, down);
  sync(row.notes, item.notes, (_, i) => i, signed("span"), ({ node }, note) => {
    judge(node, note.level);
    text(node.lastChild, note.words + (note.at ? `, ${ago(data.time - note.at)}` : ""));
    set(node, "title", node.lastChild.textContent);
  });
}

const tags = new Map(); // server -> letter and colour, for as long as the page is open

function tagOf(server) {
  const n = tags.size;
  if (!tags.has(server)) {
    const letter = String.fromCharCode(65 + (n % 26)) + (n < 26 ? "" : Math.floor(n / 26));
    tags.set(server, { id: `engine-${n}`, mark: `m${n % MARKS}`, letter });
  }
  return tags.get(server);
}

function tagButton(button, server) {
  const { letter, mark } = tagOf(server);
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
  text(row.past, e.past);
  fill(row, e, !e.up && "the engine is down", data);
}

const gpuId = (gpu) => `gpu-${gpu.uuid}`;

function gpuTile(gpu) {
  const tile = build("gpu-tile", GPU);
  tile.node.id = gpuId(gpu);
  tile.bar = make("i", "bar");
  tile.cells.lastChild.lastChild.append(tile.bar);
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
  tile.bar.style.backgroundSize = `${total ? (100 * gpu.memory_used_bytes) / total : 0}%`;
}

// promises and alerts

const SHOWN = 8; // of many; how many more there are is said
const STATES = { kept: "", burning: "burns", broken: "missed", unknown: "not known" };

/** A share as a person may read it: what is not all is never 100. */
const share = (v) => `${Math.floor(1e4 * v + 1e-7) / 100}\u00a0%`;

/** Budgets in the order of the SLA, one row for all promises of the same service and labels. */
function budgets(promises) {
  const rows = new Map();
  for (const p of promises) {
    const key = JSON.stringify([p.service, p.labels]);
    if (!rows.has(key)) rows.set(key, { key, service: p.service, labels: Object.values(p.labels).filter(Boolean), servers: new Set(), promises: [] });
    const row = rows.get(key);
    row.promises.push(p);
    p.servers.forEach((server) => row.servers.add(server));
  }
  return [...rows.values()];
}

function showBudget(row, { service, labels, servers, promises }, data) {
  const several = new Set(data.promises.map((p) => p.service)).size > 1;
  text(row.who, [...(several || !labels.length ? [service] : []), ...labels].join(" · "));
  const names = [...servers];
  text(row.where, names.length > 3 ? `${names.length} servers` : names.join(", "));
  set(row.where, "title", names.join("\n"));
  sync(row.cells, promises, (p) => p.indicator, () => clone("promise"), (cell, p) => {
    judge(cell.node, p.level);
    text(cell.title, p.title);
    text(cell.good, p.good_ratio === null ? "–" : share(p.good_ratio));
    text(cell.state, STATES[p.state] && `\u00a0${STATES[p.state]}`);
    text(cell.promise, p.promise);
    set(cell.node, "title", p.words || `${share(p.good_ratio)} of ${fixed(p.events)} in the last 5 minutes`);
  });
  const told = promises.filter((p) => p.state === "burning" || p.state === "broken");
  sync(row.notes, told, (p) => p.indicator, signed("span"), ({ node }, p) => {
    judge(node, p.level);
    const where = p.hurts.length && names.length > 1 ? ` at ${p.hurts.slice(0, 3).join(", ")}` : "";
    const tier = p.severity ? `, ${p.severity}` : "";
    text(node.lastChild, `${p.title} ${STATES[p.state]}${tier}: ${p.words}${where}, since ${ago(data.time - p.since).replace(" ago", "")}`);
  });
}

function showPromises(data) {
  $("promises").hidden = !data.promises.length;
  const all = budgets(data.promises);
  const troubled = all.filter((row) => row.promises.some((p) => p.state !== "kept"));
  const shown = all.length > SHOWN ? troubled.slice(0, 2 * SHOWN) : all;
  const more = all.length - shown.length;
  text($("sla"), `${more ? `${more} more budgets: ${all.length - troubled.length} of ${all.length} keep every promise · ` : ""}good in the last 5 minutes · SLA: ${data.sla}`);
  sync($("promise-list"), shown, (row) => row.key, () => clone("promise-row"), (row, budget) => showBudget(row, budget, data));
}

/** An address that may be followed, from a text that anybody may have written. */
function followed(words) {
  try {
    const url = new URL(words, document.baseURI);
    return words && /^https?:$/.test(url.protocol) ? url.href : "";
  } catch {
    return "";
  }
}

function showAlerts({ alerts, time }) {
  const { sources, rows, total } = alerts;
  $("alerts").hidden = !sources.length;
  text($("asked"), sources.map((s) => s.name).join(" and "));
  const failed = sources.filter((s) => s.error).map((s) => ({ failed: true, level: "warning", name: `${s.name} cannot be read`, summary: `${s.error}: ${s.url}`, labels: {} }));
  const tiers = new Map(); // of one promise: the loudest comes first
  for (const a of rows) {
    const { burn_tier: tier, long_window: window, severity, ...labels } = a.labels;
    const key = JSON.stringify([a.name, labels, tier ? "" : [severity, a.state]]);
    if (tiers.has(key)) tiers.get(key).others += 1;
    else tiers.set(key, { ...a, key, others: 0 });
  }
  const shown = [...failed, ...[...tiers.values()].slice(0, SHOWN)];
  sync($("alert-list"), shown, (a) => a.key ?? a.name, () => clone("alert"), (row, a) => {
    judge(row.node, a.level);
    text(row.name, a.name);
    text(row.state, a.failed ? "" : [a.severity, a.state, a.others && `${a.others} more tiers`].filter(Boolean).join(", "));
    const { model_name: model, server, gpu, instance, service } = a.labels;
    const where = [model, server, gpu && `GPU ${gpu}`].filter(Boolean);
    text(row.where, (where.length ? where : [instance ?? service]).filter(Boolean).join(", "));
    text(row.since, a.since ? `since ${ago(time - a.since).replace(" ago", "")}` : "");
    text(row.summary, a.summary);
    set(row.node, "title", a.description);
    const address = followed(a.runbook_url ?? "");
    set(row.runbook, "href", address);
    row.runbook.hidden = !address;
  });
  const more = total - shown.reduce((sum, a) => sum + (a.failed ? 0 : 1 + a.others), 0);
  text($("no-alert"), more ? `and ${more} more` : shown.length ? "" : "none fires, none is pending");
}

// one update

const narrow = matchMedia("(max-width: 600px)");
let latest = null;
let latestAt = 0;

function render(data) {
  const { engines, gpus, verdict, messages } = data;
  $("engines").className = engines.length > 16 ? "dense micro" : engines.length > 3 ? "dense" : "";
  $("gpus").className = gpus.length > 32 ? "dense micro" : gpus.length > 8 || narrow.matches ? "dense" : "";
  $("engines").hidden = $("gpus").hidden = false;
  engines.forEach((e) => tagOf(e.server)); // letters go by the order of engines, not of GPUs
  say(verdict.level, verdict.words);
  text($("totals"), verdict.totals);
  showPromises(data);
  showAlerts(data);
  sync($("problems"), verdict.problems.filter((p) => p.kind === "engine" || p.kind === "GPU"), (p) => p.who, signed("a"), ({ node }, p) => {
    const [, anchor, words] = node.children;
    judge(node, p.level);
    set(anchor, "href", `#${p.server ? tagOf(p.server).id : gpuId(p)}`);
    text(anchor, p.who);
    text(words, p.words);
  });
  text($("scene"), data.scene && `simulated: scene ${data.scene}`);
  // what is said about engines comes last, and only when there is none
  text($("no-engine"), engines.length ? "" : messages.at(-1));
  text($("no-gpu"), messages.slice(0, engines.length ? undefined : -1).join(" "));
  sync($("engine-list"), engines, (e) => `${e.server} ${e.url}`, engineRow, (row, e) => showEngine(row, e, data));
  sync($("gpu-list"), gpus, gpuId, gpuTile, (tile, gpu) => showGpu(tile, gpu, data));
  text($("kinds"), data.gpu_models);
  text($("version"), `vllm-vitals ${data.version}`);
  highlight();
}

function say(level, words) {
  judge($("verdict"), level);
  text($("headline"), words);
  document.title = words;
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
  document.body.classList.toggle("lost", !data);
  if (data) {
    [latest, latestAt] = [data, performance.now()];
    render(data);
  } else say("critical", failure);
  showAge();
}

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : ask()));
narrow.addEventListener("change", () => latest && render(latest));
setInterval(showAge, 1000);

// which engine sits on which GPU: hover or focus shows it, the letter keeps it shown

let hovered = null;
let pinned = null;

function highlight() {
  const on = hovered ?? [pinned];
  for (const node of document.querySelectorAll(".engine, .gpu")) node.classList.toggle("lit", node.servers.some((s) => on.includes(s)));
  for (const button of document.querySelectorAll("[data-pin]")) set(button, "aria-pressed", String(button.dataset.pin === pinned));
  document.body.classList.toggle("pinned", Boolean(pinned));
}

function hover(event) {
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

// theme

const THEMES = ["auto", "light", "dark"];
let theme = 0;
let kept = {};
try {
  kept = localStorage;
} catch {} // switched off: a choice lasts as long as the page

function wear(index) {
  theme = Math.max(0, index);
  set(document.documentElement, "data-theme", THEMES[theme]);
  text($("theme"), `Theme: ${THEMES[theme]}`);
}

wear(THEMES.indexOf(kept.theme));
$("theme").addEventListener("click", () => {
  wear((theme + 1) % THEMES.length);
  kept.theme = THEMES[theme];
});

$("columns").append(...ENGINE.map(([name, , figures]) => make("span", "", name, make("br"), figures.map((f) => f[2]).join(" / "))));
ask();
