// The dashboard: asks for what is new once a second, and shows it. Names come from outside: they are text, never markup.

import { Chart, element } from "./chart.js";
import { count, money, percent, seconds, span } from "./words.js";

const KEPT = 300, PATIENCE = 10_000, STORED = "fastllm-master-key";
const at = id => document.getElementById(id);

let column = {}, samples = [], last = 0, started = null, charts = null, heard = null;

function lines(...all) {
  return all.map(([name, color, key]) => ({ name, color, of: sample => sample[column[key]] }));
}

function makeCharts() {
  const place = at("charts"), rate = value => count(value), present = value => count(value);
  return [
    new Chart(place, "Requests a second", lines(["answered", "s0", "ok"], ["failed", "sbad", "failed"], ["from the cache", "s2", "hits"]), rate, KEPT),
    new Chart(place, "Tokens a second", lines(["prompts", "s0", "prompt_tokens"], ["answers", "s1", "completion_tokens"]), rate, KEPT),
    new Chart(place, "Latency, of the last 10 seconds", lines(["half within", "s0", "p50"], ["95 % within", "s1", "p95"], ["99 % within", "sbad", "p99"]), seconds, KEPT),
    new Chart(place, "In flight", lines(["at providers", "s0", "in_flight"], ["waiting", "s1", "waiting"], ["may be", "slimit", "slots"]), present, KEPT),
  ];
}

async function ask() {
  const headers = {}, key = sessionStorage.getItem(STORED);
  if (key) headers.authorization = `Bearer ${key}`;
  const answer = await fetch(`data?after=${last}`, { headers, signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
  if (answer.status === 401 || answer.status === 403) return knock(key, await reason(answer));
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  take(await answer.json());
}

async function reason(answer) {
  try { return (await answer.json()).error.message; } catch { return "this key is not the master key"; }
}

function knock(key, why) {
  if (key) at("door-error").textContent = why;
  sessionStorage.removeItem(STORED);
  at("door").hidden = false;
  at("board").hidden = true;
  say("locked", false);
}

function take(data) {
  heard = Date.now();
  const again = data.started !== started;
  if (again || data.first > last + 1) samples = [];
  const fresh = again ? data.samples : data.samples.slice(Math.max(0, last + 1 - data.first));  // two answers may overlap
  started = data.started;
  last = data.last;
  column = Object.fromEntries(data.columns.map((name, index) => [name, index]));
  samples = [...samples, ...fresh].slice(-KEPT);
  at("door").hidden = true;
  at("board").hidden = false;
  document.title = `${data.title} · FastLLM`;
  at("title").textContent = data.title;
  say(`FastLLM ${data.version} · up ${span(data.now - data.started)}`, false);
  charts ??= makeCharts();
  charts.forEach(chart => chart.draw(samples));
  tiles(data);
  jobs(data.jobs);
  endpoints(data.endpoints);
  groups("models", data.models);
  groups("keys", data.keys);
  errors(data.errors);
}

function lately(key) {
  const some = samples.slice(-5).map(sample => sample[column[key]]);
  return some.length ? some.reduce((sum, value) => sum + value, 0) / some.length : 0;
}

function tiles(data) {
  const { counts, cost, hit_ratio, p50, p99 } = data.totals, now = samples.at(-1) ?? [];
  const slots = now[column.slots] || 0, refused = counts.refused ?? 0;
  const shown = [
    ["requests/s", count(lately("ok") + lately("failed")), `${count(counts.ok)} answered`],
    ["tokens/s", count(lately("prompt_tokens") + lately("completion_tokens")), `${count(counts.prompt_tokens)} in, ${count(counts.completion_tokens)} out`],
    ["in flight", count(counts.in_flight), `${slots ? `of ${count(slots)}, ` : ""}${count(counts.waiting)} waiting`],
    ["median latency", seconds(now[column.p50] ?? p50), `99 % within ${seconds(now[column.p99] ?? p99)}`],
    ["from the cache", percent(hit_ratio), `${count(counts.cached)} answers`],
    ["429 of providers", count(counts.rate_limited), refused ? `${count(refused)} given to clients` : `${count(counts.retries)} retries`],
    ["cost", money(cost), cost === null ? "a price is not known" : "since the start"],
    ["failed", count(counts.failed), percent(counts.ok + counts.failed ? counts.failed / (counts.ok + counts.failed) : 0), counts.failed > 0],
  ];
  at("tiles").replaceChildren(...shown.map(([name, value, more, bad]) => {
    const tile = document.createElement("div");
    tile.className = bad ? "tile bad" : "tile";
    element("span", "", tile).textContent = name;
    element("b", "", tile).textContent = value;
    element("small", "", tile).textContent = more;
    return tile;
  }));
}

function jobs(all) {
  at("jobs").hidden = !all.length;
  at("jobs").querySelector(".jobs").replaceChildren(...all.map(({ job, rate, left }) => {
    const box = document.createElement("div");
    box.className = "job";
    const head = element("p", "", box);
    element("b", "", head).textContent = job.name;
    const words = [`${count(job.done)}${job.total === null ? "" : ` of ${count(job.total)}`}`, job.status];
    if (job.failed) words.push(`${count(job.failed)} failed`);
    if (rate) words.push(`${count(rate)}/s`);
    if (left !== null) words.push(`${span(left)} left`);
    element("span", "", head).textContent = words.join(" · ");
    const bar = element("progress", "", box);
    bar.setAttribute("aria-label", job.name);
    if (job.total !== null) { bar.max = Math.max(1, job.total); bar.value = job.total ? job.done : 1; }
    return box;
  }));
}

function endpoints(all) {
  table("endpoints", ["", "in flight", "waiting", "requests a minute", "tokens a minute", "now"], all.map(one => [
    one.name,
    one.slots ? [`${count(one.in_flight)} of ${count(one.slots)}`, one.in_flight, one.slots] : "",
    count(one.waiting),
    limit(one.requests),
    limit(one.tokens),
    { text: one.state || one.words || doing(one), bad: Boolean(one.state), left: true },
  ]));
}

function doing(one) {
  if (one.waiting && !one.in_flight) return "waits for its limits";
  const pace = one.pace ? `at most ${count(one.pace)} a second` : "";
  return [one.in_flight ? "busy" : "idle", pace].filter(Boolean).join(", ");
}

function limit(known) {
  if (!known) return { text: "no limit known", faint: true };
  return [`${count(known.used)} of ${count(known.limit)}`, known.used, known.limit, known.source];
}

function groups(id, all) {
  table(id, ["", "requests", "a second", "failed", "cached", "tokens in", "out", "a second", "p50", "p99", "cost"], all.map(one => [
    one.name, count(one.requests), count(one.rate), { text: count(one.failed), bad: one.failed > 0 }, count(one.cached),
    count(one.prompt_tokens), count(one.completion_tokens), count(one.tokens_rate), seconds(one.p50), seconds(one.p99), money(one.cost),
  ]));
}

function errors(counts) {
  const all = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  table("errors", ["", "requests"], all.map(([name, times]) => [name, count(times)]));
}

function table(id, names, rows) {
  at(id).hidden = !rows.length;
  const place = at(id).querySelector("table");
  const head = document.createElement("tr");
  for (const name of names) element("th", name === "now" ? "text" : "", head).textContent = name;
  place.replaceChildren(head, ...rows.map(cells => {
    const row = document.createElement("tr");
    cells.forEach(cell => fill(element("td", "", row), cell));
    return row;
  }));
}

function fill(place, cell) {
  if (Array.isArray(cell)) {
    const [text, value, most, note] = cell;
    place.textContent = text;
    if (note) element("small", "", place).textContent = ` ${note}`;
    const bar = element("progress", "", place);
    bar.max = Math.max(most, 1e-9);
    bar.value = Math.min(value, most);
  } else if (typeof cell === "object") {
    if (cell.faint) element("small", "", place).textContent = cell.text;
    else place.textContent = cell.text;
    place.className = [cell.bad ? "bad" : "", cell.left ? "text" : ""].join(" ").trim();
  } else {
    place.textContent = cell;
    place.title = cell;
  }
}

function say(text, bad) {
  at("state").textContent = text;
  at("state").className = bad ? "bad" : "";
}

async function go() {
  try {
    if (!document.hidden && at("door").hidden) await ask();
  } catch {
    say(heard ? `no answer since ${new Date(heard).toLocaleTimeString()}: it may have ended` : "no answer", true);
  }
  setTimeout(go, 1000);
}

at("door").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem(STORED, at("key").value.trim());
  at("key").value = "";
  at("door-error").textContent = "";
  ask().catch(() => say("no answer", true));
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) ask().catch(() => {}); });
go();
