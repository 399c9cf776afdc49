import { badge, checkbox, crumbs, el, field, put, section, select, table, wide } from "./dom.js";
import { follow, get, now, post, query } from "./data.js";
import { bar } from "./overview.js";
import { Chart, joined } from "./chart.js";
import { Heat } from "./heat.js";
import { Log } from "./log.js";
import { attempts, goodput } from "./timeline.js";
import { ago, clock, count, duration, figure, num, percent, plural, spaced, whole } from "./words.js";

const FIRST = ["loss", "validation_loss", "tokens_per_s", "grad_norm"]; // metrics shown unless others are chosen
const SECTIONS = [["curves", "Curves"], ["time", "Time"], ["ranks", "Ranks"], ["experts", "Experts"], ["devices", "Devices"], ["logs", "Logs"]];
const SLOW = 1.15; // times the median of all ranks from which a rank is called slow
const AGAIN = 10; // seconds between two looks at what the stream does not bring
const OLD = 60; // seconds after which the last step is worth a word

export function show(main, given) {
  const key = given.get("run") ?? "";
  crumbs([key]);
  document.title = key;
  const known = {};
  const parts = {
    head: el("div", { class: "head" }, el("h1", {}, key)),
    progress: el("div"),
    findings: el("div"),
    end: el("div"),
  };
  const nav = el("nav", { class: "sections", "aria-label": "Parts of this page" }, SECTIONS.map(([id, title]) => el("a", { href: `#${id}` }, title)));
  const curves = new Curves(key, given);
  const log = new Log(key, () => reopen());
  const time = el("div"), past = el("div"), others = el("div");
  const ranks = ranksPart(key), experts = expertsPart(key), devices = devicesPart(key);

  main.replaceChildren(parts.head, parts.progress, parts.findings, nav,
    section("curves", "Curves", curves.node), section("time", "Time", time, past),
    section("ranks", "Ranks", ranks.node), section("experts", "Experts", experts.node),
    section("devices", "Devices", devices.node), section("logs", "Logs", log.node), parts.end, others);
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();

  const reopen = follow(() => ({ run: key, log: log.name }), {
    set(name, value) {
      known[name] = value;
      if (name === "head") head(parts.head, value);
      else if (name === "progress") { progress(parts.progress, known); stepped = value.step; curves.grown(value.step); }
      else if (name === "findings") findings(parts.findings, value, key);
      else if (name === "goodput") time.replaceChildren(...goodput(value));
      else if (name === "attempts") { past.replaceChildren(attempts(value, now())); if (log.know(value)) queueMicrotask(reopen); }
      else if (name === "names") curves.offer(value);
      else if (name === "layers") experts.offer(value);
      else if (name === "metrics") latest(others, value);
      else if (name === "end") end(parts.end, value);
      else if (name === "problems") problems(parts.findings, value);
      else if (name === "gone") gone(parts.head);
      else if (name === "trouble") problems(parts.findings, [`the run cannot be read: ${value}`]);
    },
    gone(name) { if (name === "gone" || name === "trouble") parts.head.querySelector(".notice")?.remove(); },
    log: (part) => log.take(part),
    done() { if (!known.gone) progress(parts.progress, known); },
  });
  setInterval(() => { if (document.visibilityState === "visible" && known.progress) progress(parts.progress, known); }, 5000);
}

function gone(node) {
  node.querySelector(".notice")?.remove();
  node.append(el("p", { class: "notice critical", role: "alert" }, "The run's folder is gone: removed, moved or out of reach. What was read of it before stays here; should it come back, this page goes on."));
}

function head(node, found) {
  const job = found.job;
  const facts = [];
  if (job) {
    if (job.state === "PENDING") facts.push(`job ${job.job_id} waits (${job.reason || "no reason given"})` + (job.started ? `, expected ${clock(job.started)}` : ""));
    else facts.push(`job ${job.job_id}` + (job.nodes ? ` on ${job.nodes}` : ""));
    if (job.ends && job.ends > now()) facts.push(`time limit in ${duration(job.ends - now())}`);
    if (job.seen && now() - job.seen > 30) facts.push(`Slurm was last heard ${duration(now() - job.seen)} ago`);
  } else if (found.job_id) facts.push(`job ${found.job_id}`);
  put(node,
    el("h1", {}, found.key.slice(0, found.key.lastIndexOf("/") + 1), el("span", { class: "id" }, found.id)),
    el("p", { class: "states" }, badge(found.state), found.emulated ? el("span", { class: "badge emulated" }, "EMULATED") : null,
      el("span", {}, found.cluster), el("span", { class: "quiet" }, facts.join(", ")),
      found.sweep ? el("a", { href: `/sweep?${query({ sweep: found.sweep })}` }, "its sweep") : null),
    found.reason ? el("p", { class: "reason whole" }, found.reason) : null,
    found.tags.length || found.note ? el("p", { class: "tags" }, found.tags.map((tag) => el("span", { class: "tag" }, `#${tag}`)), found.note) : null);
}

function progress(node, { progress: found, goodput: time, head: said }) {
  if (!found) return;
  const loss = num(found.loss);
  const age = found.updated ? now() - found.updated : null;
  const left = found.left;
  const tiles = [
    ["Step", whole(found.step), found.target_steps ? `of ${whole(found.target_steps)}` : ""],
    ["Tokens", count(found.tokens), found.target_tokens ? `of ${count(found.target_tokens)}` : ""],
    ["Loss", figure(found.loss), found.loss_min === null ? "" : `lowest ${figure(found.loss_min)}`, loss !== null && !Number.isFinite(loss)],
    ["Tokens/s", count(found.tokens_per_s), "median of recent steps"],
    said?.done ? ["Goodput", percent(time?.ettr), "of the wall clock"] : ["ETA", duration(found.eta_s), left ? `with interruptions ${duration(left[0])} to ${duration(left[2])}` : "of training"],
    said?.done ? ["Lost", whole(found.lost_steps), "steps done again"] : ["Goodput", percent(time?.ettr), found.lost_steps ? plural(found.lost_steps, "lost step") : "no step lost"],
  ];
  if (!said?.done && age !== null) tiles.push(["Last step", ago(age), age > OLD ? "longer than a minute" : "", age > OLD]);
  fill(node, el("div", { class: "wide-meter" }, bar(found)),
    el("dl", { class: "tiles" }, tiles.map(([name, value, words, bad]) => el("div", {}, el("dt", {}, name), el("dd", { class: bad && "bad" }, value), el("dd", { class: "quiet" }, words)))));
}

/** Replace what is there only where it says something else: a screen reader and a selection are left in peace. */
function fill(node, ...children) {
  const fresh = el("div", {}, children);
  if (fresh.textContent !== node.textContent || !node.childElementCount) node.replaceChildren(...fresh.childNodes);
}

function findings(node, found, key) {
  const id = key.slice(key.lastIndexOf("/") + 1);
  const list = found.map((each) => {
    const { silenced } = each;
    const where = [each.node && `node ${each.node}`, each.rank !== null && `rank ${each.rank}`].filter(Boolean).join(", ");
    const button = el("button", { type: "button", class: "small", "data-key": each.key, "aria-label": `${silenced ? "Say again" : "Silence"}: ${each.title}`, onclick: async () => {
      try {
        await post("/api/silence", { run: key, finding: each.key, silent: !silenced });
      } catch (error) {
        button.after(el("span", { class: "bad" }, ` ${error.message}`));
      }
    } }, silenced ? "Say again" : "Silence");
    return el("li", { class: `finding ${each.severity} ${silenced ? "silenced" : ""}` },
      el("p", { class: "title" }, el("b", { class: "severity" }, each.severity), ` ${each.title}`, silenced ? el("span", { class: "quiet" }, " (silenced)") : null),
      el("p", {}, each.evidence),
      el("p", { class: "quiet" }, [`since ${clock(each.since)}`, where].filter(Boolean).join(", "), each.do ? [". To do: ", el("code", {}, each.do.replace(/\bRUN\b/g, id))] : null),
      button);
  });
  const old = node.querySelector(".problems");
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  node.replaceChildren(found.length ? section("findings", "Findings", el("ul", { class: "findings" }, list)) : "", old ?? "");
  if (focused) node.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function problems(node, found) {
  node.querySelector(".problems")?.remove();
  if (found.length) node.append(el("ul", { class: "problems" }, found.map((each) => el("li", {}, each))));
}

function latest(node, found) {
  const rows = Object.entries(found);
  if (!rows.length) return node.replaceChildren();
  const open = node.querySelector("details")?.open;
  node.replaceChildren(el("details", { open }, el("summary", {}, `Newest values of all ${rows.length} metrics`),
    wide("Newest values", table("Newest value of each metric", [{ title: "Metric", cell: ([name]) => name }, { title: "Value", number: true, cell: ([, value]) => figure(value) }], rows))));
}

function end(node, { sample, summary }) {
  const rows = Object.entries(summary).filter(([name]) => name !== "finished");
  node.replaceChildren(...(rows.length || sample ? [section("summary", "At the end",
    el("dl", { class: "facts" }, rows.map(([name, value]) => el("div", {}, el("dt", {}, spaced(name)), el("dd", {}, typeof value === "number" ? figure(value) : String(value))))),
    sample ? el("blockquote", {}, sample) : null)] : []));
}

/** The curves that were chosen, each a chart, all over one axis and one range. What is chosen is kept in the address. */
class Curves {
  constructor(run, given) {
    this.run = run;
    this.names = [];
    this.chosen = given.getAll("metric");
    this.axis = ["step", "tokens", "hours"].includes(given.get("axis")) ? given.get("axis") : "step";
    this.smoothing = Math.min(0.999, Math.max(0, Number(given.get("smoothing")) || 0));
    this.log = given.has("log");
    this.range = null;
    this.charts = new Map();
    this.had = new Map(); // metric -> {curve, history, key}
    this.busy = false;
    this.grid = el("div", { class: "grid" });
    this.picker = el("details", { class: "menu" }, el("summary", {}, "Metrics"));
    const smooth = el("input", { type: "range", min: 0, max: 0.99, step: 0.01, onchange: () => { this.smoothing = Number(smooth.value); this.all(); } });
    smooth.value = this.smoothing;
    this.said = el("p", { class: "quiet", role: "status" });
    this.node = el("div", {}, el("div", { class: "tools" }, this.picker,
      field("Over", select([["step", "steps"], ["tokens", "tokens"], ["hours", "hours"]], this.axis, (axis) => { this.axis = axis; this.range = null; this.all(); })),
      field("Smoothing", smooth), checkbox("Log scale", this.log, (on) => { this.log = on; this.all(); })),
      this.said, this.grid);
  }

  offer(names) {
    if (names.join() === this.names.join()) return;
    this.names = names;
    if (!this.chosen.length) this.chosen = FIRST.filter((name) => names.includes(name));
    if (!this.chosen.length) this.chosen = names.slice(0, 1);
    this.picker.replaceChildren(this.picker.firstChild, el("fieldset", {}, el("legend", { class: "hidden" }, "Metrics to draw"),
      names.map((name) => checkbox(name, this.chosen.includes(name), (on) => {
        this.chosen = names.filter((each) => (each === name ? on : this.chosen.includes(each)));
        this.all();
      }))));
    this.all();
  }

  grown(step) {
    if (step !== this.step) this.refresh();
    this.step = step;
  }

  all() {
    for (const [name, chart] of this.charts) {
      if (this.chosen.includes(name)) continue;
      chart.remove();
      this.charts.delete(name);
    }
    const shown = new URLSearchParams(location.search);
    for (const name of ["metric", "axis", "smoothing", "log"]) shown.delete(name);
    for (const name of this.chosen) shown.append("metric", name);
    if (this.axis !== "step") shown.set("axis", this.axis);
    if (this.smoothing) shown.set("smoothing", this.smoothing);
    if (this.log) shown.set("log", "1");
    history.replaceState(null, "", `?${shown}${location.hash}`);
    this.refresh();
  }

  /** One look at a time; what changed meanwhile is looked at next. */
  async refresh() {
    this.again = true;
    if (this.busy) return;
    this.busy = true;
    while (this.again) {
      this.again = false;
      await Promise.all(this.chosen.map((name) => this.load(name)));
    }
    this.busy = false;
  }

  async load(name) {
    const most = Math.min(2000, Math.max(200, Math.round(this.grid.clientWidth || 600)));
    const [axis, log] = [this.axis, this.log];
    const key = JSON.stringify([axis, this.smoothing, this.range, most]);
    const had = this.had.get(name);
    const asked = { run: this.run, metric: name, axis, most, smoothing: this.smoothing || null, low: this.range?.low, high: this.range?.high };
    if (had?.key === key && had.curve.x.length > 2) {
      const place = had.curve.x.length - 1;
      Object.assign(asked, { history: had.history, first: had.curve.x[0], since: had.curve.x[place], place });
    }
    try {
      const answer = await get("/api/curve", asked);
      const curve = joined(had?.curve, answer);
      this.had.set(name, { curve, history: answer.history, key });
      if (!this.chosen.includes(name)) return;
      if (!this.charts.has(name)) this.charts.set(name, new Chart(name, (range) => { this.range = range; this.refresh(); }));
      const chart = this.charts.get(name);
      if (!chart.node.isConnected) {
        const before = this.chosen.slice(this.chosen.indexOf(name) + 1).map((each) => this.charts.get(each)?.node).find((node) => node?.isConnected);
        this.grid.insertBefore(chart.node, before ?? null);
      }
      const ghosts = answer.ghosts.map((ghost) => ({ attempt: ghost.attempt, x: ghost.curve.x.map(num), y: ghost.curve.high.map(num) }));
      chart.show([{ label: name, ...curve, ghosts }], { axis, log });
      this.said.textContent = this.range ? "zoomed; “All” shows the whole curve" : "";
    } catch (error) {
      this.said.textContent = `${name}: ${error.message}`;
    }
  }
}

let stepped = null; // the newest step that the stream told of

/** A part that is read when it comes into view, and then again every few seconds while it is and there are new steps. */
function lazy(node, load) {
  let last = 0, busy = false, seen = false, at = NaN;
  const said = el("p", { class: "quiet", role: "status" });
  node.prepend(said);
  const call = async () => {
    if (busy) return;
    busy = true;
    try {
      said.textContent = (await load()) ?? "";
    } catch (error) {
      said.textContent = error.message;
    }
    [last, at, busy] = [Date.now(), stepped, false];
  };
  new IntersectionObserver((entries) => {
    seen = entries.at(-1).isIntersecting;
    if (seen && at !== stepped && Date.now() - last > 1000 * AGAIN) call();
  }, { rootMargin: "200px" }).observe(node);
  setInterval(() => { if (seen && at !== stepped && document.visibilityState === "visible") call(); }, 1000 * AGAIN);
  return call;
}

// All ranks of a synchronous training take the same time for a step: who is slow shows in what it does alone.
const PARTS = [["data_s", "Reads data"], ["forward_s", "Forward"], ["backward_s", "Backward"], ["communication_s", "Communicates"], ["optimizer_s", "Updates"]];
function ranksPart(run) {
  let found = null, medians = [];
  const ratio = (row, column) => {
    const value = num(found.seconds[row][column]);
    return value === null || !Number.isFinite(value) || !medians[column] ? null : value / medians[column];
  };
  const heat = new Heat("Seconds of a step by rank", {
    colours: ["--cool", "--middle", "--hot"], ends: ["faster than the others", "1.5 times as long"],
    share: (row, column) => { const at = ratio(row, column); return at === null ? null : at - 0.5; },
    say: (row, column) => {
      const at = ratio(row, column);
      return `${name(row)}, from step ${whole(found.steps[column])}: ` + (at === null ? "nothing recorded" : `${figure(found.seconds[row][column])} s, ${at.toFixed(2)} times the median`);
    },
  });
  const name = (row) => `rank ${found.ranks[row]}${found.nodes[row] ? ` on ${found.nodes[row]}` : ""}`;
  const beside = el("div", { class: "beside" });
  heat.node.hidden = true;
  const node = el("div", {}, heat.node, beside);
  lazy(node, async () => {
    const [times, newest] = await Promise.all([get("/api/ranks", { run }), get("/api/devices", { run })]);
    found = times;
    const alone = new Map(newest.ranks.map((each) => [each.rank, each]));
    const parts = PARTS.filter(([id]) => newest.ranks.some((each) => each[id] !== undefined));
    const columns = found.steps.length;
    heat.node.hidden = !columns;
    beside.hidden = !columns;
    if (!columns) return "No rank has told how long its steps take.";
    medians = found.steps.map((_, column) => median(found.seconds.map((row) => num(row[column]))));
    heat.show(found.ranks.length, columns, `step ${whole(found.steps[0])}`, `step ${whole(found.steps.at(-1))}`);
    const rows = found.ranks.map((rank, row) => {
      const recent = found.seconds[row].slice(-20).map(num);
      const ratios = recent.map((_, i) => ratio(row, columns - recent.length + i));
      return { rank, node: found.nodes[row], seconds: median(recent), ratio: median(ratios) };
    }).sort((a, b) => (b.ratio ?? 0) - (a.ratio ?? 0));
    const slow = rows.filter((each) => each.ratio > SLOW).length;
    beside.replaceChildren(wide("Ranks", table("Ranks, the slowest of late first", [
      { title: "Rank", cell: (each) => String(each.rank) },
      { title: "Node", cell: (each) => each.node || null },
      { title: "Step takes", number: true, cell: (each) => (each.seconds === null ? null : `${figure(each.seconds)} s`) },
      { title: "Times the median", number: true, cell: (each) => (each.ratio === null ? null : el(each.ratio > SLOW ? "b" : "span", { class: each.ratio > SLOW && "bad" }, each.ratio.toFixed(2) + (each.ratio > SLOW ? " slow" : ""))) },
      ...parts.map(([id, title]) => ({ title, number: true, cell: (each) => { const value = alone.get(each.rank)?.[id]; return value === undefined ? null : `${figure(value)} s`; } })),
    ], rows.slice(0, 32))));
    return `${plural(rows.length, "rank")}; ${slow ? `${plural(slow, "rank")} slower than ${SLOW} times the median of late` : "none slower than the others of late"}`
      + (rows.length > 32 ? ". The table has the slowest 32." : "");
  });
  return { node };
}

function median(values) {
  const known = values.filter((value) => value !== null && Number.isFinite(value)).sort((a, b) => a - b);
  return known.length ? (known[(known.length - 1) >> 1] + known[known.length >> 1]) / 2 : null;
}

function expertsPart(run) {
  let found = null, layer = null, layers = [];
  const heat = new Heat("Tokens of each expert over the fair share", {
    colours: ["--cool", "--middle", "--hot"], ends: ["nothing", "twice the fair share"],
    share: (row, column) => { const value = num(found.share[row][column]); return value === null || !Number.isFinite(value) ? null : value / 2; },
    say: (row, column) => `expert ${row}, from step ${whole(found.steps[column])}: ${figure(found.share[row][column])} of the fair share`,
  });
  const tools = el("div", { class: "tools" }), beside = el("div", { class: "beside" });
  heat.node.hidden = true;
  const node = el("div", {}, tools, heat.node, beside);
  const load = lazy(node, async () => {
    if (layer === null) return "This model has no experts, or nothing was recorded of them yet.";
    found = await get("/api/experts", { run, layer });
    heat.node.hidden = !found.steps.length;
    if (!found.steps.length) return "Nothing was recorded of this layer.";
    heat.show(found.share.length, found.steps.length, `step ${whole(found.steps[0])}`, `step ${whole(found.steps.at(-1))}`);
    const rows = found.share.map((shares, expert) => ({ expert, now: num(shares.at(-1)), recent: median(shares.slice(-20).map(num)) }));
    rows.sort((a, b) => (a.recent ?? 0) - (b.recent ?? 0));
    const shown = rows.length > 16 ? [...rows.slice(0, 8), ...rows.slice(-8)] : rows;
    beside.replaceChildren(wide("Experts", table(`Experts of layer ${layer}, the least loaded of late first`, [
      { title: "Expert", cell: (each) => String(each.expert) },
      { title: "Newest", number: true, cell: (each) => figure(each.now) },
      { title: "Of late", number: true, cell: (each) => figure(each.recent) },
      { title: "", cell: (each) => (each.recent === null ? "" : each.recent <= 0.01 ? "gets nothing" : each.recent < 0.2 ? "starved" : each.recent > 2 ? "overloaded" : "even enough") },
    ], shown)));
    const [entropy, dropped] = [num(found.entropy.at(-1)), num(found.dropped.at(-1))];
    return [`${plural(rows.length, "expert")}, each row one; 1 is the fair share`, Number.isFinite(entropy ?? NaN) && `entropy of the router ${figure(entropy)}`, dropped > 0 && `${whole(dropped)} rows dropped`].filter(Boolean).join("; ");
  });
  return {
    node,
    offer(given) {
      if (given.join() === layers.join()) return;
      layers = given;
      layer = layers.includes(layer) ? layer : layers[0] ?? null;
      tools.replaceChildren(...(layers.length ? [field("Layer", select(layers.map((each) => [String(each), `layer ${each}`]), String(layer), (value) => { layer = Number(value); load(); }))] : []));
      load();
    },
  };
}

const HIDDEN = ["rank", "node", "t", "step", "host", "local_rank"];
function devicesPart(run) {
  const node = el("div"), beside = el("div");
  node.append(beside);
  lazy(node, async () => {
    const { ranks } = await get("/api/devices", { run });
    const named = (rank) => Object.keys(rank).filter((name) => /memory|gpu|util|power|temp|clock|ecc|xid|cpu|energy|rss|throttle|_gib$/i.test(name) && !HIDDEN.includes(name));
    const names = [...new Set(ranks.flatMap(named))];
    if (!names.length) {
      beside.replaceChildren();
      return "Nothing was recorded of the devices.";
    }
    beside.replaceChildren(wide("Devices", table("Newest of each rank of the newest attempt", [
      { title: "Rank", cell: (each) => String(each.rank) },
      { title: "Node", cell: (each) => each.node || null },
      { title: "Told", number: true, cell: (each) => (each.t ? ago(now() - each.t) : null) },
      ...names.map((name) => ({ title: spaced(name), number: true, cell: (each) => (typeof each[name] === "number" || num(each[name]) !== null ? figure(each[name]) : each[name] === undefined ? null : String(each[name])) })),
    ], ranks)));
    return plural(ranks.length, "rank");
  });
  return { node };
}
