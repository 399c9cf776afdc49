// The curves of several runs over each other, and in which settings the runs differ.

import { checkbox, crumbs, el, field, offer, put, section, select, table, wide } from "./dom.js";
import { MOST } from "./choice.js";
import { get, query } from "./data.js";
import { Chart } from "./chart.js";
import { Loader } from "./curves.js";
import { piece } from "./lines.js";
import { plain } from "./parameters.js";
import { num } from "./words.js";

const EVERY = 5; // seconds between two looks while the page is seen
const FIRST = ["loss", "validation_loss"];
const AXES = [
  ["step", "steps"],
  ["tokens", "tokens"],
  ["hours", "hours"],
];

export function show(main, given) {
  const asked = [...new Set(given.getAll("run"))];
  crumbs(["Comparison"]);
  document.title = `Comparison of ${asked.length} runs`;
  document.getElementById("link").textContent = "";
  if (!asked.length) {
    const where = el("a", { href: "/" }, "all runs");
    main.replaceChildren(el("h1", {}, "Comparison"), el("p", {}, "No run is named. Tick two or more of ", where, "."));
    return;
  }
  new Comparison(asked.slice(0, MOST), asked.slice(MOST), given).begin(main);
}

class Comparison {
  constructor(runs, left, given) {
    this.runs = runs;
    this.left = left; // those that are too many
    this.unknown = [];
    this.settings = new Map(); // path -> the value of each of the runs
    this.metrics = given.getAll("metric");
    this.axis = AXES.some(([id]) => id === given.get("axis")) ? given.get("axis") : "step";
    this.group = given.get("group"); // the setting by whose values runs look alike
    this.smoothing = 0;
    this.log = given.has("log");
    this.range = null;
    this.names = [];
    this.charts = new Map();
    this.loader = new Loader();
    this.keys = el("ul", { class: "plain" });
    this.missing = el("p", { class: "notice", role: "status", hidden: true });
    this.said = el("p", { class: "quiet", role: "status" });
    this.grid = el("div", { class: "grid" });
    this.differences = el("div");
    this.picker = el("details", { class: "menu" }, el("summary", {}, "Metrics"));
    this.grouping = select([["", "run"]], "", (path) => {
      this.group = path || null;
      this.changed();
    });
  }

  begin(main) {
    const smooth = el("input", {
      type: "range",
      min: 0,
      max: 0.99,
      step: 0.01,
      value: 0,
      onchange: () => {
        this.smoothing = Number(smooth.value);
        this.refresh();
      },
    });
    const axis = select(AXES, this.axis, (value) => {
      this.axis = value;
      this.range = null;
      this.changed();
    });
    const log = checkbox("Log scale", this.log, (on) => {
      this.log = on;
      this.changed();
    });
    main.replaceChildren(
      el("h1", {}, "Comparison"),
      this.missing,
      this.keys,
      section(
        "curves",
        "Curves",
        el(
          "div",
          { class: "tools" },
          this.picker,
          field("Over", axis),
          field("Colours by", this.grouping),
          field("Smoothing", smooth),
          log,
        ),
        this.said,
        this.grid,
      ),
      section("settings", "What differs", this.differences),
    );
    this.read();
    setInterval(() => {
      if (document.visibilityState === "visible") this.refresh();
    }, 1000 * EVERY);
  }

  /** What is asked once: which of the runs there are, in what they differ and what they recorded. */
  async read() {
    try {
      const found = await get("/api/differences", { run: this.runs });
      this.runs = found.runs;
      this.unknown = found.unknown;
      this.settings = new Map(found.differences.map((each) => [each.path, each.values]));
      this.tabulate();
    } catch (error) {
      this.differences.replaceChildren(el("p", { class: "notice critical" }, error.message));
    }
    const several = (values) => new Set(values.map((each) => JSON.stringify(each))).size < values.length;
    const groups = [...this.settings].filter(([path, values]) => several(values) || path === this.group);
    offer(this.grouping, [["", "run"], ...groups.map(([path]) => [path, path])], this.group ?? "");
    if (!this.settings.has(this.group)) this.group = null;
    this.grouping.value = this.group ?? "";
    this.say();
    this.known();
    const told = await Promise.all(this.runs.map((run) => get("/api/metrics", { run }).catch(() => ({ names: [] }))));
    this.offer([...new Set(told.flatMap((each) => each.names))]);
  }

  say() {
    const texts = [
      this.left.length && `${MOST} runs are compared at most. Left out: ${this.left.join(", ")}`,
      this.unknown.length && `There is no such run, or it cannot be read: ${this.unknown.join(", ")}`,
    ].filter(Boolean);
    this.missing.hidden = !texts.length;
    this.missing.textContent = texts.join(". ");
  }

  /** How a run looks: as no other one, or as all that have its value of the setting that is grouped by. */
  look(place) {
    const values = this.settings.get(this.group);
    if (!values) return { number: place, key: this.runs[place] };
    const order = [...new Map(values.map((each) => [JSON.stringify(each), each])).values()].sort(
      typeof values[0] === "number" ? (a, b) => a - b : (a, b) => shown(a).localeCompare(shown(b)),
    );
    const number = order.findIndex((each) => JSON.stringify(each) === JSON.stringify(values[place]));
    return { number, key: `${this.group} ${shown(values[place])}` };
  }

  known() {
    put(
      this.keys,
      this.runs.map((run, place) => {
        const { number, key } = this.look(place);
        return el(
          "li",
          { class: "key" },
          piece(number),
          el("a", { href: `/run?${query({ run })}` }, run),
          key !== run && el("span", { class: "quiet" }, ` ${key}`),
        );
      }),
    );
  }

  /** What is chosen is kept in the address. */
  changed() {
    const kept = new URLSearchParams(location.search);
    for (const name of ["metric", "axis", "group", "log"]) kept.delete(name);
    for (const name of this.metrics) kept.append("metric", name);
    if (this.axis !== "step") kept.set("axis", this.axis);
    if (this.group) kept.set("group", this.group);
    if (this.log) kept.set("log", "1");
    history.replaceState(null, "", `?${kept}${location.hash}`);
    this.known();
    this.refresh();
  }

  offer(names) {
    const wanted = this.metrics.length ? this.metrics : FIRST;
    this.metrics = names.filter((name) => wanted.includes(name));
    if (!this.metrics.length) this.metrics = names.slice(0, 1);
    this.picker.append(
      el(
        "fieldset",
        {},
        el("legend", { class: "hidden" }, "Metrics to draw"),
        names.map((name) =>
          checkbox(name, this.metrics.includes(name), (on) => {
            this.metrics = names.filter((each) => (each === name ? on : this.metrics.includes(each)));
            for (const [old, chart] of this.charts) {
              if (this.metrics.includes(old)) continue;
              chart.remove();
              this.charts.delete(old);
            }
            this.changed();
          }),
        ),
      ),
    );
    this.refresh();
  }

  /** One look at a time; what changed meanwhile is looked at next. */
  async refresh() {
    this.again = true;
    if (this.busy) return;
    this.busy = true;
    while (this.again) {
      this.again = false;
      const failed = new Set();
      for (const metric of this.metrics) await this.load(metric, failed);
      this.said.textContent = [...failed].join("; ");
    }
    this.busy = false;
  }

  async load(metric, failed) {
    const { axis, smoothing, range, log } = this;
    const most = Math.min(1500, Math.max(200, Math.round(this.grid.clientWidth || 600)));
    const curves = await Promise.all(
      this.runs.map(async (run, place) => {
        try {
          const curve = await this.loader.load(run, metric, { axis, smoothing, range, most });
          return { label: run, ...this.look(place), ...curve, ghosts: [] };
        } catch (error) {
          failed.add(`${run}: ${error.message}`);
          return null;
        }
      }),
    );
    if (!this.metrics.includes(metric)) return;
    if (!this.charts.has(metric)) {
      const chart = new Chart(metric, (wanted) => {
        this.range = wanted;
        this.refresh();
      });
      this.charts.set(metric, chart);
      this.grid.append(chart.node);
    }
    this.charts.get(metric).show(
      curves.filter((each) => each?.x.length),
      { axis, log, range },
    );
  }

  tabulate() {
    const same = this.runs.length > 1 ? "Their configurations are the same." : "There is one run only.";
    const columns = [
      { title: "Setting", cell: ([path]) => path },
      ...this.runs.map((run, i) => ({
        title: run,
        cell: ([, values]) => (values[i] === null ? null : shown(values[i])),
      })),
    ];
    this.differences.replaceChildren(
      this.settings.size
        ? wide("Settings that differ", table("Settings that differ", columns, [...this.settings]))
        : el("p", { class: "quiet" }, same),
    );
  }
}

/** A setting's value; what is not finite came as text. */
const shown = (value) => plain(typeof value === "string" ? (num(value) ?? value) : value);
