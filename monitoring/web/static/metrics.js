// The metrics of one run.

import { checkbox, el, field, select } from "./dom.js";
import { Chart } from "./chart.js";
import { Loader } from "./curves.js";

const FIRST = ["loss", "validation_loss", "tokens_per_s", "grad_norm"]; // shown unless others are chosen

/** The curves that were chosen, each a chart, all over one axis and one range. What is chosen is kept in the address. */
export class Metrics {
  constructor(run, given) {
    this.run = run;
    this.names = [];
    this.chosen = given.getAll("metric");
    this.axis = ["step", "tokens", "hours"].includes(given.get("axis")) ? given.get("axis") : "step";
    this.smoothing = Math.min(0.999, Math.max(0, Number(given.get("smoothing")) || 0));
    this.log = given.has("log");
    this.range = null;
    this.charts = new Map();
    this.loader = new Loader();
    this.busy = false;
    this.grid = el("div", { class: "grid" });
    this.picker = el("details", { class: "menu" }, el("summary", {}, "Metrics"));
    const smooth = el("input", {
      type: "range",
      min: 0,
      max: 0.99,
      step: 0.01,
      onchange: () => {
        this.smoothing = Number(smooth.value);
        this.all();
      },
    });
    smooth.value = this.smoothing;
    this.said = el("p", { class: "quiet", role: "status" });
    this.node = el(
      "div",
      {},
      el(
        "div",
        { class: "tools" },
        this.picker,
        field(
          "Over",
          select(
            [
              ["step", "steps"],
              ["tokens", "tokens"],
              ["hours", "hours"],
            ],
            this.axis,
            (axis) => {
              this.axis = axis;
              this.range = null;
              this.all();
            },
          ),
        ),
        field("Smoothing", smooth),
        checkbox("Log scale", this.log, (on) => {
          this.log = on;
          this.all();
        }),
      ),
      this.said,
      this.grid,
    );
  }

  offer(names) {
    if (names.join() === this.names.join()) return;
    this.names = names;
    if (!this.chosen.length) this.chosen = FIRST.filter((name) => names.includes(name));
    if (!this.chosen.length) this.chosen = names.slice(0, 1);
    this.picker.replaceChildren(
      this.picker.firstChild,
      el(
        "fieldset",
        {},
        el("legend", { class: "hidden" }, "Metrics to draw"),
        names.map((name) =>
          checkbox(name, this.chosen.includes(name), (on) => {
            this.chosen = names.filter((each) => (each === name ? on : this.chosen.includes(each)));
            this.all();
          }),
        ),
      ),
    );
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
    const { axis, log, smoothing, range } = this;
    try {
      const curve = await this.loader.load(this.run, name, { axis, smoothing, range, most });
      if (!this.chosen.includes(name)) return;
      if (!this.charts.has(name))
        this.charts.set(
          name,
          new Chart(name, (range) => {
            this.range = range;
            this.refresh();
          }),
        );
      const chart = this.charts.get(name);
      if (!chart.node.isConnected) {
        const before = this.chosen
          .slice(this.chosen.indexOf(name) + 1)
          .map((each) => this.charts.get(each)?.node)
          .find((node) => node?.isConnected);
        this.grid.insertBefore(chart.node, before ?? null);
      }
      chart.show([{ label: name, run: this.run, number: 0, ...curve }], { axis, log, range });
      this.said.textContent = this.range ? "zoomed; “All” shows the whole curve" : "";
    } catch (error) {
      this.said.textContent = `${name}: ${error.message}`;
    }
  }
}
