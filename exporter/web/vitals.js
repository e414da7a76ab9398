// The live page: asks api/vitals every two seconds and updates the document in place.
// Names come from engines, which nobody vouches for: data reaches the document as text, never as markup.

const POLL_MS = 2000;
const DEADLINE_MS = 5000;
const SPAN_SECONDS = 600;
const XID_NEWS_SECONDS = 900; // as health.py weighs them
const STALE_SECONDS = 10;
const MARKS = 8; // engine colours in vitals.css; beyond them the letter tells engines apart
const MOST_PROBLEMS = 6;
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);

// ---- numbers in words: [text, unit], or null for "not known"

const digits = [0, 1, 2].map(
  (n) => new Intl.NumberFormat("en", { minimumFractionDigits: n, maximumFractionDigits: n }),
);
const fixed = (value, n = 0) => digits[n].format(value);
const short = (value) => fixed(value, value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2);
const known = (format) => (value) => (value === null || value === undefined ? null : format(value));

const count = known((v) => [fixed(v), ""]);
const ratio = known((v) => [fixed(100 * v, v < 0.0995 && v > 0 ? 1 : 0), "%"]);
const wholeRatio = known((v) => [fixed(100 * v), "%"]);
const seconds = known((v) =>
  v >= 0.9995 ? [short(v), "s"] : [fixed(1000 * v, v < 0.00995 ? 1 : 0), "ms"],
);
const tokens = known((v) => (v >= 99950 ? [`${fixed(v / 1000)}k`, "tok/s"] : [fixed(v, v > 0 && v < 9.95 ? 1 : 0), "tok/s"]));
const perSecond = known((v) => [fixed(v, v > 0 && v < 9.95 ? 1 : 0), "/s"]);
const perMinute = known((v) => [fixed(60 * v, v > 0 && 60 * v < 9.95 ? 1 : 0), "/min"]);
const joules = known((v) => [short(v), "J/token"]);
const watts = known((v) => (v >= 9999.5 ? [short(v / 1000), "kW"] : [fixed(v), "W"]));
const celsius = known((v) => [fixed(v), "°C"]);
const bytes = known((v) => [fixed(v / 2 ** 30, 1), "GiB"]);

const joined = (parts) => (parts ? parts.filter(Boolean).join("\u00a0") : "–");
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function ago(age) {
  const s = Math.max(0, Math.round(age));
  if (s < 90) return `${s} s ago`;
  if (s < 5400) return `${Math.round(s / 60)} min ago`;
  return s < 129600 ? `${Math.round(s / 3600)} h ago` : `${Math.round(s / 86400)} days ago`;
}

function ranges(numbers) {
  const out = [];
  for (const n of [...numbers].sort((a, b) => a - b)) {
    const last = out.at(-1);
    if (last && last[1] === n - 1) last[1] = n;
    else out.push([n, n]);
  }
  return out.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(", ");
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

function attribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** Keep one child per item, in order, without touching those that stay. */
function sync(parent, items, key, create, update) {
  parent.rows ??= new Map();
  const wanted = new Set(items.map(key));
  for (const [id, row] of parent.rows)
    if (!wanted.has(id)) {
      row.node.remove();
      parent.rows.delete(id);
    }
  items.forEach((item, index) => {
    const id = key(item);
    if (!parent.rows.has(id)) parent.rows.set(id, create(item));
    const row = parent.rows.get(id);
    if (parent.children[index] !== row.node) parent.insertBefore(row.node, parent.children[index] ?? null);
    update(row, item, index);
  });
}

function lines(list, items) {
  list.hidden = !items.length;
  sync(list, items, (item) => item.id ?? item.words, () => ({ node: make("li", "", make("span", "sign"), make("span")) }), ({ node }, item) => {
    node.dataset.level = item.level;
    attribute(node.firstChild, "aria-hidden", "true");
    text(node.lastChild, item.words);
    attribute(node, "title", item.title ?? null);
  });
}

function fromTemplate(id) {
  const node = $(id).content.firstElementChild.cloneNode(true);
  const fields = Object.fromEntries([...node.querySelectorAll("[data-f]")].map((field) => [field.dataset.f, field]));
  return { node, ...fields };
}

/** A number with its unit; what is missing is a dash that says why. */
function figure(caption = "") {
  const number = make("span", "number");
  const unit = make("span", "unit");
  const node = make("span", "figure", make("span", "value", number, unit));
  if (caption) node.append(make("span", "caption", caption));
  const show = (parts, why, title = null) => {
    text(number, parts ? parts[0] : "–");
    text(unit, parts && parts[1] ? `\u00a0${parts[1]}` : "");
    node.classList.toggle("missing", !parts);
    attribute(node, "title", parts ? title : why);
    attribute(number, "role", parts ? null : "img");
    attribute(number, "aria-label", parts ? null : why);
  };
  return { node, show };
}

/** A line over the last ten minutes that starts at zero; what is missing is a gap. */
function sparkline(tracks) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 30");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const path = (name) => {
    const node = document.createElementNS(SVG, "path");
    node.setAttribute("class", name);
    svg.append(node);
    return node;
  };
  const drawn = tracks.map((_, i) => ({ area: i ? null : path("area"), line: path(i ? "line second" : "line"), dot: i ? null : path("dot") }));
  const range = make("span", "range");
  const node = make("span", "spark", svg, range);
  const show = (points, interval, scale) => {
    const sets = points.map((one) => one ?? []);
    const values = sets.flat().filter((v) => v !== null);
    const top = scale ?? (Math.max(0, ...values) || 1);
    const step = 100 / Math.max(1, Math.ceil(SPAN_SECONDS / interval) - 1);
    sets.forEach((set, i) => {
      const { area, line, dot } = drawn[i];
      const at = (v, j) => `${(99.5 - (set.length - 1 - j) * step).toFixed(1)} ${(28.5 - (27 * Math.min(v, top)) / top).toFixed(1)}`;
      let stroke = "";
      let fill = "";
      for (let from = 0; from < set.length; from++) {
        if (set[from] === null) continue;
        let to = from;
        while (to + 1 < set.length && set[to + 1] !== null) to++;
        const run = set.slice(from, to + 1).map((v, j) => at(v, from + j));
        stroke += `M${run.join("L")}${from === to ? "h.1" : ""}`;
        fill += `M${run[0].split(" ")[0]} 30L${run.join("L")}V30Z`;
        from = to;
      }
      attribute(line, "d", stroke);
      if (area) attribute(area, "d", fill);
      const last = set.at(-1);
      if (dot) attribute(dot, "d", last === undefined || last === null ? "" : `M${at(last, set.length - 1)}h.01`);
    });
    const words = tracks.map(({ name, format }, i) => {
      const own = sets[i].filter((v) => v !== null);
      if (!own.length) return null;
      const [low, high] = [format(Math.min(...own)), format(Math.max(...own))];
      const from = low[1] === high[1] ? low[0] : joined(low);
      return `${name} ${low.join() === high.join() ? "" : `${from} – `}${joined(high)}`.trim();
    });
    const said = words.filter(Boolean).join(", ");
    text(range, said || "no values yet");
    attribute(svg, "aria-label", `last 10 minutes: ${said || "no values"}`);
    attribute(node, "title", `Last 10 minutes: ${said || "no values"}`);
  };
  return { node, show };
}

// ---- engines

const waitsFor = (what) => (e) => (e.generation_tokens_per_second === null ? "the second reading is still to come" : what);
const notOnPage = () => "not on the engine's page";
const noRequests = waitsFor("no requests in the last minute");
const quantiles = (of) => ["p50", "p95", "p99"].map((q) => [q, (e) => seconds(e[of][q]), noRequests]);

function noEnergy(e) {
  if (!e.gpus.length) return "no GPU is known for this engine";
  if (e.generation_tokens_per_second === 0) return "no tokens in the last minute";
  return waitsFor("a GPU is shared with another engine or reports no energy")(e);
}

// name, words on hover, figures [caption, value, why it is missing], sparklines [track, name, format], top of the scale
const CELLS = [
  ["Requests", "", [["running", (e) => count(e.running), notOnPage], ["waiting", (e) => count(e.waiting), notOnPage], ["finished", (e) => perSecond(e.finished_per_second), waitsFor("not on the engine's page")]],
    [["running", "running", count], ["waiting", "waiting", count]]],
  ["TTFT", "Time to first token", quantiles("ttft_seconds"), [["ttft_p95_seconds", "p95", seconds]]],
  ["TPOT", "Time per output token", quantiles("tpot_seconds"), [["tpot_p95_seconds", "p95", seconds]]],
  ["Input", "Prompt tokens", [["", (e) => tokens(e.prompt_tokens_per_second), waitsFor("not on the engine's page")]], [["prompt_tokens_per_second", "", tokens]]],
  ["Output", "Generated tokens, and the energy that its GPUs took for each", [["", (e) => tokens(e.generation_tokens_per_second), waitsFor("not on the engine's page")], ["", (e) => joules(e.joules_per_output_token), noEnergy]],
    [["generation_tokens_per_second", "", tokens]]],
  ["KV cache", "KV cache in use, prefix cache hits, preempted requests", [["used", (e) => ratio(e.kv_cache_ratio), notOnPage], ["prefix hits", (e) => ratio(e.prefix_hit_ratio), waitsFor("no prefix was looked up in the last minute")], ["preempted", (e) => perMinute(e.preemptions_per_second), waitsFor("not on the engine's page")]],
    [["kv_cache_ratio", "", ratio]], 1],
];

const PLACED = {
  config: "as configured", process: "seen in the process tree", visible_devices: "from CUDA_VISIBLE_DEVICES",
  pod_resources: "from the kubelet", cgroup: "from its cgroup", sole_engine: "the only engine here",
};

const tags = new Map(); // server -> letter and colour, for as long as the page is open

function tagOf(server) {
  if (!tags.has(server)) {
    const n = tags.size;
    const letter = String.fromCharCode(65 + (n % 26));
    tags.set(server, { letter: n < 26 ? letter : String.fromCharCode(64 + Math.floor(n / 26)) + letter, mark: `m${n % MARKS}`, id: `engine-${n}` });
  }
  return tags.get(server);
}

function engineRow(engine) {
  const row = fromTemplate("engine-row");
  const { mark, letter, id } = tagOf(engine.server);
  row.node.id = id;
  row.node.classList.add(mark);
  row.tag.textContent = letter;
  row.tag.setAttribute("aria-label", `Engine ${letter}: highlight its GPUs`);
  row.tag.dataset.pin = engine.server;
  row.models = [];
  row.parts = CELLS.map(([name, title, values, tracks, top]) => {
    const figures = values.map(([caption]) => figure(caption));
    const spark = sparkline(tracks.map(([, label, format]) => ({ name: label, format })));
    const term = make("dt", "", name);
    if (title) term.title = title;
    const node = make("div", "cell", term, make("dd", "figures", ...figures.map((f) => f.node)), make("dd", "", spark.node));
    row.cells.append(node);
    return { figures, spark, values, tracks, top };
  });
  return row;
}

function engineState(e) {
  if (!e.up) return e.reason === "pending" ? ["wait", "not looked at yet"] : ["critical", `down (${e.reason})`];
  return e.status === "ok" ? ["ok", "up"] : [e.status, e.status === "critical" ? "up, but not working" : "up, with a warning"];
}

function showEngine(row, e, gpus, interval, density) {
  const [level, word] = engineState(e);
  row.node.dataset.level = level;
  row.node.servers = [e.server];
  if (e.models.length) row.models = e.models; // a server that is down does not tell
  const [first = "", ...others] = row.models;
  text(row.server, e.server);
  attribute(row.server, "title", `${e.server} at ${e.url}`);
  const model = first ? first + (others.length ? ` and ${others.length} more` : "") : "–";
  text(row.model, model);
  attribute(row.model, "title", row.models.join("\n") || "the engine has not told its model yet");
  text(row.state, word);
  const seats = e.gpus.map((gpu) => Number(gpu.gpu));
  text(row.seat, seats.length ? `on GPU ${ranges(seats)}` : gpus.length ? "GPU not known" : "");
  attribute(row.seat, "title", seats.length ? (PLACED[e.gpu_source] ?? e.gpu_source) : null);
  text(row.past, [
    e.kind !== "vllm" && e.kind !== "unknown" ? e.kind : "",
    e.engines.length > 1 ? `${e.engines.length} data parallel ranks` : "",
    e.restarts ? `${plural(e.restarts, "restart")} seen` : "",
  ].filter(Boolean).join(", "));
  lines(row.reasons, e.reasons.map((words) => ({ words, level })));
  row.tag.disabled = !seats.length;
  for (const { figures, spark, values, tracks, top } of row.parts) {
    values.forEach(([, value, why], i) => figures[i].show(value(e), e.up ? why(e) : "the engine is down"));
    if (density !== "micro") spark.show(tracks.map(([track]) => e.history[track]), interval, top);
  }
}

// ---- GPUs

const THROTTLES = {
  sw_power_cap: "at its power limit", hw_slowdown: "slowed down by its hardware", hw_thermal: "slowed down by its hardware: too hot",
  sw_thermal: "slowed down: too hot", hw_power_brake: "slowed down: external power brake", sync_boost: "clocks follow a sync boost group",
  board_limit: "at the board's power limit", reliability: "at its voltage limit", power_smoothing: "power is being smoothed",
};
const SLOWED = new Set(["hw_slowdown", "hw_thermal", "sw_thermal", "hw_power_brake"]);
const UNREADABLE = {
  starting: "being opened", lost: "lost, fell off the bus", hang: "the driver does not answer", reset_required: "needs a reset",
  no_permission: "no permission", no_driver: "the driver is gone", driver_reload: "the driver was reloaded",
  version_mismatch: "driver and library differ in version", failed: "the driver reports an error",
};

function gpuLines(gpu, now) {
  const out = [];
  if (!gpu.up) out.push({ id: "down", level: gpu.reason === "starting" ? "wait" : "critical", words: `Not readable: ${UNREADABLE[gpu.reason] ?? gpu.reason}` });
  for (const words of gpu.reasons)
    if (!/^(XID|not readable)/.test(words)) out.push({ level: gpu.status, words: words.replace(/ C\b/g, " °C") });
  for (const reason of gpu.throttle)
    out.push({ id: reason, level: SLOWED.has(reason) ? "warning" : "note", words: THROTTLES[reason] ?? reason, title: "why its clocks are held down" });
  for (const x of [...gpu.xid].sort((a, b) => b.last_timestamp_seconds - a.last_timestamp_seconds)) {
    const age = now - x.last_timestamp_seconds;
    out.push({
      id: `xid${x.xid}`, level: age > XID_NEWS_SECONDS ? "note" : x.critical ? "critical" : "warning",
      words: `XID ${x.xid}${x.meaning ? `: ${x.meaning}` : ""}${x.count > 1 ? ` (${x.count} times)` : ""}, ${ago(age)}`,
    });
  }
  if (gpu.up && gpu.age_seconds > STALE_SECONDS) out.push({ id: "old", level: "note", words: `read ${ago(gpu.age_seconds)}` });
  return out;
}

const ORDER = ["note", "ok", "wait", "warning", "critical"];
const worst = (levels) => levels.reduce((a, b) => (ORDER.indexOf(b) > ORDER.indexOf(a) ? b : a), "ok");
const gpuLevel = (gpu, found) => worst([gpu.up || gpu.reason !== "starting" ? gpu.status : "wait", ...found.filter((l) => l.level !== "note").map((l) => l.level)]);
const gpuId = (gpu) => `gpu-${gpu.uuid || gpu.gpu}`;

function gpuTile(gpu) {
  const tile = fromTemplate("gpu-tile");
  tile.node.id = gpuId(gpu);
  for (const [name, label, format] of [["util", "", wholeRatio], ["power", "", watts], ["heat", "", celsius]]) {
    const parts = { ...figure(), spark: sparkline([{ name: label, format }]) };
    tile[name].append(parts.node, parts.spark.node);
    tile[`${name}Parts`] = parts;
  }
  tile.memoryParts = figure();
  tile.bar = make("span", "bar", make("span"));
  tile.memory.append(tile.memoryParts.node, tile.bar);
  return tile;
}

function showGpu(tile, gpu, found, interval, density) {
  const level = gpuLevel(gpu, found);
  tile.node.dataset.level = level;
  tile.node.servers = gpu.servers;
  const mark = gpu.servers.length ? tagOf(gpu.servers[0]).mark : "none";
  if (tile.mark !== mark) {
    if (tile.mark) tile.node.classList.remove(tile.mark);
    tile.node.classList.add(mark);
    tile.mark = mark;
  }
  text(tile.title, `GPU ${gpu.gpu}`);
  attribute(tile.title, "title", `${gpu.name}\n${gpu.uuid}`);
  text(tile.word, level);
  const seats = gpu.servers.length ? gpu.servers : [""];
  sync(tile.tags, seats, (s) => s, (server) => {
    if (!server) return { node: make("span", "idle", "no engine") };
    const { letter, mark: own } = tagOf(server);
    const node = make("button", `seat ${own}`, make("b", "", letter), make("span", "", server));
    node.type = "button";
    node.dataset.pin = server;
    node.title = server;
    node.setAttribute("aria-pressed", "false");
    node.setAttribute("aria-label", `Engine ${letter}, ${server}: highlight`);
    return { node };
  }, () => {});
  const why = gpu.up ? "this GPU does not report it" : "this GPU cannot be read";
  const busy = [["SM active", gpu.sm_active_ratio], ["memory traffic", gpu.dram_active_ratio]].filter(([, v]) => v !== null).map(([n, v]) => `${n} ${joined(wholeRatio(v))}`).join(", ");
  tile.utilParts.show(wholeRatio(gpu.utilization_ratio), why, busy || null);
  tile.powerParts.show(watts(gpu.power_watts), why, gpu.power_limit_watts === null ? null : `limit ${joined(watts(gpu.power_limit_watts))}`);
  tile.heatParts.show(celsius(gpu.temperature_celsius), why, gpu.memory_temperature_celsius === null ? null : `memory ${joined(celsius(gpu.memory_temperature_celsius))}`);
  const [used, total] = [gpu.memory_used_bytes, gpu.memory_total_bytes];
  tile.memoryParts.show(used === null ? null : [fixed(used / 2 ** 30, 1), total === null ? "GiB" : `/ ${joined(bytes(total))}`], why);
  const share = used !== null && total ? used / total : null;
  tile.bar.hidden = share === null;
  tile.bar.firstChild.style.width = `${100 * Math.min(1, share ?? 0)}%`;
  attribute(tile.bar, "title", share === null ? null : `${joined(wholeRatio(share))} of its memory in use`);
  if (density !== "micro") {
    tile.utilParts.spark.show([gpu.history.utilization_ratio], interval, 1);
    if (density === "roomy") {
      tile.powerParts.spark.show([gpu.history.power_watts], interval, gpu.power_limit_watts ?? undefined);
      tile.heatParts.spark.show([gpu.history.temperature_celsius], interval, 100);
    }
  }
  lines(tile.reasons, found);
}

// ---- the verdict

const names = (items) => items.slice(0, 2).join(", ") + (items.length > 2 ? ` and ${items.length - 2} more` : "");

function verdict(engines, gpus, gpuFound) {
  const down = engines.filter((e) => !e.up && e.reason !== "pending");
  const sick = engines.filter((e) => e.up && e.status !== "ok");
  const pending = engines.filter((e) => !e.up && e.reason === "pending");
  const gpuWith = (level) => gpus.filter((gpu) => gpuLevel(gpu, gpuFound.get(gpu)) === level);
  const label = (gpu) => `GPU ${gpu.gpu}`;
  const lost = gpuWith("critical").filter((gpu) => !gpu.up);
  const hurt = gpuWith("critical").filter((gpu) => gpu.up);
  const warned = gpuWith("warning");
  const said = [];
  const say = (items, words, list) => items.length && said.push(`${words}: ${names(list)}`);
  say(down, `${plural(down.length, "engine")} down`, down.map((e) => `${e.server} (${e.reason})`));
  say(sick, `${plural(sick.length, "engine")} not working`, sick.map((e) => e.server));
  say(lost, `${plural(lost.length, "GPU")} not readable`, lost.map(label));
  say(hurt, `${plural(hurt.length, "GPU")} critical`, hurt.map(label));
  say(warned, `${plural(warned.length, "GPU")} with a warning`, warned.map(label));
  say(pending, `${plural(pending.length, "engine")} not looked at yet`, pending.map((e) => e.server));
  const level = down.length || sick.length || lost.length || hurt.length ? "critical" : warned.length ? "warning" : pending.length ? "wait" : "ok";
  const problems = [
    ...[...down, ...sick].map((e) => ({ id: tagOf(e.server).id, level: "critical", who: e.server, words: e.reasons.join("; ") || e.reason })),
    ...[...lost, ...hurt, ...warned].map((gpu) => {
      const bad = gpuFound.get(gpu).filter((l) => ["critical", "warning"].includes(l.level));
      const on = gpu.servers.length ? ` (${gpu.servers.join(", ")})` : "";
      return { id: gpuId(gpu), level: gpu.status === "critical" ? "critical" : "warning", who: label(gpu) + on, words: bad.map((l) => l.words).join("; ") };
    }),
  ];
  if (said.length) return { level, words: said.join("; "), problems };
  if (!engines.length && !gpus.length) return { level: "wait", words: "Nothing to watch yet: no engine, no GPU", problems };
  const all = [engines.length ? plural(engines.length, "engine") : "no engine", gpus.length ? plural(gpus.length, "GPU") : "no GPU is read"];
  return { level: engines.length ? "ok" : "wait", words: `${engines.length ? "All well" : "GPUs are well"}: ${all.join(", ")}`, problems };
}

function totals(engines, gpus) {
  const sum = (items, value) => {
    const found = items.map(value).filter((v) => v !== null);
    return found.length ? [found.reduce((a, b) => a + b, 0), found.length] : null;
  };
  const some = (total, items, what) => (total[1] < items.length ? ` from ${total[1]} of ${items.length} ${what}` : "");
  const out = [];
  const [running, waiting] = [sum(engines, (e) => e.running), sum(engines, (e) => e.waiting)];
  if (running) out.push(`${fixed(running[0])} running${waiting ? `, ${fixed(waiting[0])} waiting` : ""}`);
  const [input, output] = [sum(engines, (e) => e.prompt_tokens_per_second), sum(engines, (e) => e.generation_tokens_per_second)];
  if (input && output) out.push(`${tokens(input[0])[0]} tok/s in, ${tokens(output[0])[0]} tok/s out${some(output, engines, "engines")}`);
  const power = sum(gpus, (gpu) => gpu.power_watts);
  if (power) out.push(`${power[0] >= 1000 ? `${fixed(power[0] / 1000, 1)} kW` : `${fixed(power[0])} W`}${some(power, gpus, "GPUs")}`);
  return out.join(" · ");
}

function showProblems(problems) {
  const list = $("problems");
  const shown = problems.slice(0, MOST_PROBLEMS);
  if (problems.length > shown.length) shown.push({ id: "", level: "note", who: "", words: `and ${problems.length - shown.length} more below` });
  list.hidden = !shown.length;
  sync(list, shown, (p) => p.id, () => {
    const link = make("a");
    return { node: make("li", "", make("span", "sign"), link, make("span", "words")), link };
  }, ({ node, link }, p) => {
    node.dataset.level = p.level;
    link.hidden = !p.who;
    attribute(link, "href", `#${p.id}`);
    text(link, p.who);
    text(node.lastChild, p.words);
  });
}

function commands(node, words) {
  if (node.textContent === words) return;
  const parts = words.split(/(vllm-vitals [a-z]+(?: --[a-z-]+)?(?: https?:\/\/[^\s,]+)?)/);
  node.replaceChildren(...parts.map((part, i) => (i % 2 ? make("code", "", part) : part)));
}

// ---- one update

const narrow = matchMedia("(max-width: 600px)");
let latest = null;
let latestAt = 0;
let failure = "";

function render(data) {
  const { engines, gpus, interval_seconds: interval } = data;
  const now = data.time + (performance.now() - latestAt) / 1000;
  const found = new Map(gpus.map((gpu) => [gpu, gpuLines(gpu, now)]));
  const engineDensity = engines.length > 16 ? "micro" : engines.length > 3 ? "dense" : "roomy";
  const gpuDensity = gpus.length > 32 ? "micro" : gpus.length > 8 || narrow.matches ? "dense" : "roomy";
  engines.forEach((e) => tagOf(e.server)); // letters go by the order of engines, not by that of GPUs

  const { level, words, problems } = verdict(engines, gpus, found);
  $("verdict").dataset.level = level;
  text($("headline"), words);
  text($("totals"), totals(engines, gpus));
  showProblems(problems);
  document.title = level === "critical" || level === "warning" ? `${level === "critical" ? "!!" : "!"} ${words}` : "vllm-vitals";

  $("scene").hidden = !data.scene;
  text($("scene"), data.scene ? `simulated: scene ${data.scene}` : "");

  // api/vitals puts what it says about engines last, and says it only when there is none
  const about = [...data.messages];
  const noEngine = engines.length ? "" : (about.pop() ?? "No engine is known.");
  const noGpu = about.join(" ");
  $("engines").hidden = $("gpus").hidden = false;
  $("engines").dataset.density = engineDensity;
  $("gpus").dataset.density = gpuDensity;
  $("engines-empty").hidden = !noEngine;
  $("gpus-empty").hidden = !noGpu;
  commands($("engines-empty"), noEngine);
  commands($("gpus-empty"), noGpu);
  $("columns").hidden = !engines.length;
  text($("engines-note"), engines.length ? "figures over the last minute, lines over the last 10 minutes from zero" : "");
  const kinds = new Map();
  for (const gpu of gpus) kinds.set(gpu.name, (kinds.get(gpu.name) ?? 0) + 1);
  text($("gpus-note"), [...kinds].map(([name, n]) => `${n} × ${name || "unnamed"}`).join(", "));

  sync($("engine-list"), engines, (e) => `${e.server} ${e.url}`, engineRow, (row, e) => showEngine(row, e, gpus, interval, engineDensity));
  sync($("gpu-list"), gpus, gpuId, gpuTile, (tile, gpu) => showGpu(tile, gpu, found.get(gpu), interval, gpuDensity));
  text($("version"), `vllm-vitals ${data.version}`);
  text($("clock"), `read every ${fixed(interval, interval % 1 ? 1 : 0)} s`);
  link();
}

function showAge() {
  const age = latest && Math.round((performance.now() - latestAt) / 1000);
  text($("age"), latest ? `last update ${ago(age)}` : "");
}

function showFailure() {
  document.body.classList.toggle("lost", Boolean(failure));
  if (!failure) return;
  $("verdict").dataset.level = "lost";
  text($("headline"), failure);
  document.title = "? vllm-vitals: no connection";
}

// ---- asking

let timer = 0;
let asking = false;

async function ask() {
  if (asking) return;
  asking = true;
  try {
    const answer = await fetch("api/vitals", { signal: AbortSignal.timeout(DEADLINE_MS), cache: "no-store" });
    if (!answer.ok) throw new Error(`The exporter answers with ${answer.status}, retrying`);
    latest = await answer.json();
    latestAt = performance.now();
    failure = "";
  } catch (error) {
    failure = error.message.startsWith("The exporter answers") ? error.message : "Connection to the exporter lost, retrying";
  }
  asking = false;
  if (latest && !failure) render(latest);
  showFailure();
  showAge();
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(ask, POLL_MS);
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) ask();
});
narrow.addEventListener("change", () => latest && render(latest));
setInterval(() => document.hidden || showAge(), 1000);

// ---- which engine sits on which GPU: hovering shows it, its letter keeps it shown

let hovered = null;
let pinned = null;

function link() {
  const on = hovered ?? (pinned && [pinned]);
  for (const node of document.querySelectorAll(".engine, .gpu"))
    node.classList.toggle("lit", Boolean(on && node.servers.some((server) => on.includes(server))));
  document.body.classList.toggle("pinned", Boolean(pinned));
  for (const button of document.querySelectorAll("[data-pin]")) attribute(button, "aria-pressed", String(button.dataset.pin === pinned));
}

function hover(event) {
  const servers = event.target.closest?.(".engine, .gpu")?.servers ?? null;
  if (String(servers) === String(hovered)) return;
  hovered = servers;
  link();
}

$("main").addEventListener("pointerover", (event) => event.pointerType === "touch" || hover(event));
$("main").addEventListener("focusin", hover);
for (const name of ["pointerleave", "focusout"])
  $("main").addEventListener(name, () => {
    hovered = null;
    link();
  });
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-pin]");
  pinned = button && button.dataset.pin !== pinned ? button.dataset.pin : button ? null : pinned;
  if (button) link();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  pinned = hovered = null;
  link();
});

// ---- theme

const THEMES = ["auto", "light", "dark"];
const KEY = "vllm-vitals-theme";

function theme(name) {
  attribute(document.documentElement, "data-theme", name === "auto" ? null : name);
  text($("theme"), `Theme: ${name}`);
}

function stored() {
  try {
    return THEMES.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "auto";
  } catch {
    return "auto"; // storage is switched off
  }
}

let chosen = stored();
theme(chosen);
$("theme").addEventListener("click", () => {
  chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
  theme(chosen);
  try {
    localStorage.setItem(KEY, chosen);
  } catch {} // the choice then lasts as long as the page
});

for (const [name, title] of CELLS) {
  const head = make("span", "", name);
  if (title) head.title = title;
  $("columns").append(head);
}
ask();
