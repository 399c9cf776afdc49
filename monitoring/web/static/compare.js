import { checkbox, crumbs, el, field, section, select, table, wide } from "./dom.js";
import { get, query } from "./data.js";
import { Chart } from "./chart.js";
import { Loader } from "./curves.js";
import { piece } from "./lines.js";
import { num } from "./words.js";

const EVERY = 5; // seconds between two looks while the page is seen

export function show(main, given) {
  const runs = given.getAll("run");
  crumbs(["Comparison"]);
  document.title = `Comparison of ${runs.length} runs`;
  const grid = el("div", { class: "grid" }),
    said = el("p", { class: "quiet", role: "status" });
  const charts = new Map(),
    loader = new Loader();
  let metrics = given.getAll("metric").length ? given.getAll("metric") : ["loss", "validation_loss"];
  let axis = given.get("axis") ?? "step",
    smoothing = 0,
    log = false,
    range = null,
    names = [],
    busy = false,
    again = false;
  const picker = el("details", { class: "menu" }, el("summary", {}, "Metrics"));
  const smooth = el("input", {
    type: "range",
    min: 0,
    max: 0.99,
    step: 0.01,
    value: 0,
    onchange: () => {
      smoothing = Number(smooth.value);
      refresh();
    },
  });
  const settings = el("div");

  main.replaceChildren(
    el("h1", {}, "Comparison"),
    el(
      "ul",
      { class: "plain" },
      runs.map((run, i) =>
        el("li", { class: "key" }, piece(i), el("a", { href: `/run?${query({ run })}` }, run)),
      ),
    ),
    section(
      "curves",
      "Curves",
      el(
        "div",
        { class: "tools" },
        picker,
        field(
          "Over",
          select(
            [
              ["step", "steps"],
              ["tokens", "tokens"],
              ["hours", "hours"],
            ],
            axis,
            (value) => {
              axis = value;
              range = null;
              refresh();
            },
          ),
        ),
        field("Smoothing", smooth),
        checkbox("Log scale", log, (on) => {
          log = on;
          refresh();
        }),
      ),
      said,
      grid,
    ),
    section("settings", "What differs", settings),
  );

  async function refresh() {
    again = true;
    if (busy) return;
    busy = true;
    while (again) {
      again = false;
      const failed = new Set();
      for (const metric of metrics) await load(metric, failed);
      said.textContent = [...failed].join("; ");
    }
    busy = false;
  }

  async function load(metric, failed) {
    const most = Math.min(1500, Math.max(200, Math.round(grid.clientWidth || 600)));
    const found = await Promise.all(
      runs.map(async (run, number) => {
        try {
          return { label: run, number, ...(await loader.load(run, metric, { axis, smoothing, range, most })), ghosts: [] };
        } catch (error) {
          failed.add(`${run}: ${error.message}`);
          return null;
        }
      }),
    );
    if (!charts.has(metric)) {
      const chart = new Chart(metric, (wanted) => {
        range = wanted;
        refresh();
      });
      charts.set(metric, chart);
      grid.append(chart.node);
    }
    charts.get(metric).show(
      found.filter((each) => each?.x.length),
      { axis, log, range },
    );
  }

  async function offer() {
    try {
      const found = await Promise.all(runs.map((run) => get("/api/metrics", { run }).catch(() => ({ names: [] }))));
      names = [...new Set(found.flatMap((each) => each.names))];
    } catch (error) {
      said.textContent = error.message;
    }
    metrics = metrics.filter((name) => names.includes(name));
    if (!metrics.length) metrics = names.slice(0, 1);
    picker.append(
      el(
        "fieldset",
        {},
        el("legend", { class: "hidden" }, "Metrics to draw"),
        names.map((name) =>
          checkbox(name, metrics.includes(name), (on) => {
            metrics = names.filter((each) => (each === name ? on : metrics.includes(each)));
            for (const [old, chart] of charts) {
              if (metrics.includes(old)) continue;
              chart.remove();
              charts.delete(old);
            }
            refresh();
          }),
        ),
      ),
    );
    refresh();
  }

  async function differ() {
    try {
      const { differences } = await get("/api/differences", { run: runs });
      const shown = (value) =>
        value === null ? null : typeof value === "object" ? JSON.stringify(value) : String(num(value) ?? value);
      settings.replaceChildren(
        differences.length
          ? wide(
              "Settings that differ",
              table(
                "Settings that differ",
                [
                  { title: "Setting", cell: (row) => row.path },
                  ...runs.map((run, i) => ({ title: run, cell: (row) => shown(row.values[i]) })),
                ],
                differences,
              ),
            )
          : el(
              "p",
              { class: "quiet" },
              runs.length > 1 ? "Their configurations are the same." : "There is one run only.",
            ),
      );
    } catch (error) {
      settings.replaceChildren(el("p", { class: "notice critical" }, error.message));
    }
  }

  offer();
  differ();
  setInterval(() => {
    if (document.visibilityState === "visible") refresh();
  }, 1000 * EVERY);
  const link = document.getElementById("link");
  link.textContent = "";
}
