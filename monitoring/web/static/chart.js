// One metric over steps, tokens or hours, of one run or of several: uPlot, the values beside it as text and as a table.

import { el, put, table, wide } from "./dom.js";
import { colour, dash, piece, stroke } from "./lines.js";
import { csv, picture, save } from "./saving.js";
import { place, short, tick } from "./ticks.js";
import { figure } from "./words.js";

const scheme = matchMedia("(prefers-color-scheme: dark)");
const SYNC = "curves";
const LEAST = { step: 2, tokens: 2, hours: 1e-3 }; // of an axis that are worth being looked at
const ROWS = 40; // of a table, about
const FAR = 1e15; // no run has more of anything

export class Chart {
  /**
   * @param name of the metric.
   * @param zoom called with {low, high} of what is to be looked at more closely, or with null for all.
   */
  constructor(name, zoom) {
    this.name = name;
    this.zoom = zoom;
    // {label, number, key, x, low, high, bad, ghosts: [{attempt, x, y}]}: the number says how a curve looks, and the key
    // what all of that number have in common.
    this.curves = [];
    this.options = { axis: "step", log: false };
    this.plot = null;
    this.canvas = el("div", { class: "canvas", tabindex: 0, role: "img", onkeydown: (event) => this.key(event) });
    this.readout = el("output", { class: "readout" });
    this.legend = el("ul", { class: "legend" });
    this.data = el(
      "details",
      { class: "data", ontoggle: () => this.tabulate() },
      el("summary", {}, "Values as a table"),
    );
    const button = (text, label, call) =>
      el(
        "button",
        { type: "button", class: "small", "aria-label": `${label}: ${name}`, title: label, onclick: call },
        text,
      );
    this.node = el(
      "figure",
      { class: "chart" },
      el(
        "figcaption",
        {},
        el("h3", {}, name),
        el(
          "span",
          { class: "buttons" },
          button("+", "Zoom in", () => this.scale(0.5)),
          button("−", "Zoom out", () => this.scale(2)),
          button("‹", "Earlier", () => this.move(-0.5)),
          button("›", "Later", () => this.move(0.5)),
          button("All", "Whole curve", () => this.zoom(null)),
          button("CSV", "Save the values as CSV", () => this.saveValues()),
          button("PNG", "Save the picture as PNG", () => this.savePicture()),
        ),
      ),
      this.canvas,
      this.readout,
      this.legend,
      this.data,
    );
    this.resizer = new ResizeObserver(() => this.resize());
    this.resizer.observe(this.canvas);
    this.recolour = () => this.draw(true);
    scheme.addEventListener("change", this.recolour);
  }

  remove() {
    this.resizer.disconnect();
    scheme.removeEventListener("change", this.recolour);
    this.plot?.destroy();
    this.node.remove();
  }

  show(curves, options) {
    const same =
      this.plot && JSON.stringify(options) === JSON.stringify(this.options) && shape(curves) === shape(this.curves);
    this.curves = curves;
    this.options = options;
    this.draw(!same);
    this.tabulate();
  }

  draw(anew) {
    const { data, series, bands } = this.series();
    if (anew || !this.plot) {
      this.plot?.destroy();
      this.plot = new uPlot(this.settings(series, bands), data, this.canvas);
    } else this.plot.setData(data);
    this.describe();
  }

  /** uPlot wants one x for all: curves are joined, and lines go on where another curve has a place of its own. */
  series() {
    const tables = [],
      series = [{}],
      bands = [];
    for (const curve of this.curves) {
      const ink = stroke(curve.number);
      const y = (values) =>
        values.map((value) =>
          value === null || !Number.isFinite(value) || (this.options.log && value <= 0) ? null : value,
        );
      const [low, high] = [y(curve.low), y(curve.high)];
      const line = {
        label: curve.label,
        stroke: ink,
        dash: dash(curve.number),
        width: 1.6,
        spanGaps: true,
        points: { show: curve.x.length < 40, size: 5 },
      };
      const edge = { stroke: faint(ink, 0.6), width: 1, spanGaps: true, points: { show: false } };
      if (low.every((value, i) => value === high[i])) {
        tables.push([curve.x, low]);
        series.push(line);
      } else {
        tables.push([
          curve.x,
          high,
          low,
          low.map((value, i) =>
            value === null ? null : this.options.log ? Math.sqrt(value * high[i]) : (value + high[i]) / 2,
          ),
        ]);
        bands.push({ series: [series.length, series.length + 1], fill: faint(ink, 0.22) });
        series.push({ ...edge }, { ...edge }, line);
      }
      for (const ghost of curve.ghosts ?? []) {
        if (!ghost.x.length) continue;
        tables.push([ghost.x, y(ghost.y)]);
        series.push({
          label: `lost, attempt ${ghost.attempt}`,
          stroke: colour("--ghost"),
          dash: [3, 3],
          width: 1.2,
          spanGaps: true,
          points: { show: ghost.x.length < 2 },
        });
      }
    }
    const filled = tables.filter((each) => each[0].length);
    const data =
      filled.length === tables.length && tables.length
        ? uPlot.join(
            tables,
            tables.map((each) => each.slice(1).map(() => 1)),
          )
        : [[], ...series.slice(1).map(() => [])];
    return { data, series, bands };
  }

  settings(series, bands) {
    const { axis, log, range } = this.options;
    const text = colour("--quiet"),
      grid = { stroke: colour("--grid"), width: 1 };
    const font = "12px system-ui, sans-serif";
    const axes = { stroke: text, grid, ticks: grid, font };
    return {
      ...this.size(),
      series,
      bands,
      legend: { show: false },
      cursor: { sync: { key: `${SYNC}-${axis}` }, drag: { x: true, y: false, setScale: false }, points: { size: 7 } },
      scales: {
        x: range ? { time: false, range: [range.low, range.high] } : { time: false },
        y: log ? { distr: 3 } : {},
      },
      axes: [
        {
          ...axes,
          size: 34,
          space: 70,
          values: (plot, values) => values.map((value) => tick(value, axis, plot.scales.x)),
        },
        { ...axes, size: 62, values: (_, values) => values.map((value) => (value === null ? null : short(value))) },
      ],
      hooks: {
        setSelect: [
          (plot) => {
            if (plot.select.width < 6) return;
            const [low, high] = [
              plot.posToVal(plot.select.left, "x"),
              plot.posToVal(plot.select.left + plot.select.width, "x"),
            ];
            plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
            this.look(low, high);
          },
        ],
        setCursor: [(plot) => this.read(plot.cursor.idx)],
        draw: [(plot) => this.marks(plot)],
        ready: [(plot) => plot.over.addEventListener("dblclick", () => this.zoom(null))],
      },
    };
  }

  /** What is not finite has no height: it is marked at the top. */
  marks(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = colour("--critical");
    ctx.lineWidth = 2 * devicePixelRatio;
    const size = 4 * devicePixelRatio;
    for (const curve of this.curves) {
      for (const bin of curve.bad) {
        const x = plot.valToPos(curve.x[bin], "x", true),
          y = bbox.top + 2 * size;
        if (x < bbox.left || x > bbox.left + bbox.width) continue;
        ctx.beginPath();
        ctx.moveTo(x - size, y - size);
        ctx.lineTo(x + size, y + size);
        ctx.moveTo(x + size, y - size);
        ctx.lineTo(x - size, y + size);
        ctx.stroke();
      }
    }
    ctx.restore();
  }

  size() {
    return { width: Math.max(200, this.canvas.clientWidth), height: this.canvas.clientWidth < 420 ? 190 : 240 };
  }

  resize() {
    if (this.plot && this.canvas.clientWidth && this.plot.width !== this.size().width) this.plot.setSize(this.size());
  }

  /** The values at the cursor, in words. */
  read(index) {
    const x = index === null || index === undefined ? null : this.plot?.data[0][index];
    if (x === null || x === undefined) {
      this.readout.textContent = this.last();
      return;
    }
    const values = this.curves.map((curve) => {
      const bin = holding(curve.x, x);
      return bin < 0 ? null : (this.curves.length > 1 ? `${curve.label} ` : "") + range(curve, bin);
    });
    this.readout.textContent = `${place(x, this.options.axis)}: ${values.filter(Boolean).join(", ")}`;
  }

  last() {
    const [curve] = this.curves;
    if (this.curves.length !== 1 || !curve.x.length) return this.curves.length ? "" : "no values";
    return `${place(curve.x.at(-1), this.options.axis)}: ${range(curve, curve.x.length - 1)}`;
  }

  describe() {
    const words = this.curves.map(
      (curve) =>
        `${curve.label}: ${curve.x.length} points, last ${curve.x.length ? range(curve, curve.x.length - 1) : "none"}`,
    );
    this.canvas.setAttribute(
      "aria-label",
      `${this.name} over ${this.options.axis}. ${words.join("; ")}. Left and right read values, plus and minus zoom, 0 shows all.`,
    );
    if (this.plot?.cursor.idx === null || this.plot?.cursor.idx === undefined) this.readout.textContent = this.last();
    const ghosts = this.curves.some((curve) => curve.ghosts?.some((ghost) => ghost.x.length));
    const bad = this.curves.some((curve) => curve.bad.length);
    const band = this.curves.some((curve) => curve.low.some((value, i) => value !== curve.high[i]));
    put(
      this.legend,
      this.curves.length > 1 && [...this.keys()].map(([key, number]) => el("li", {}, piece(number), key)),
      band && el("li", { class: "band" }, "lowest to highest of the steps of a bin"),
      ghosts && el("li", { class: "ghost" }, "lost work, done again later"),
      bad && el("li", { class: "not-finite" }, "NaN or infinite"),
    );
  }

  key(event) {
    const plot = this.plot,
      length = plot?.data[0].length ?? 0;
    const step = event.shiftKey ? 10 : 1;
    const calls = {
      ArrowLeft: () => this.point(-step),
      ArrowRight: () => this.point(step),
      Home: () => this.point(-length),
      End: () => this.point(length),
      "+": () => this.scale(0.5),
      "=": () => this.scale(0.5),
      "-": () => this.scale(2),
      0: () => this.zoom(null),
    };
    if (!length || !calls[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    calls[event.key]();
  }

  point(by) {
    const xs = this.plot.data[0],
      at = this.plot.cursor.idx ?? (by > 0 ? -1 : xs.length);
    const index = Math.min(xs.length - 1, Math.max(0, at + by));
    this.plot.setCursor({ left: this.plot.valToPos(xs[index], "x"), top: this.plot.height / 3 });
    this.read(index);
  }

  scale(by) {
    const { min, max } = this.plot.scales.x;
    const middle = (min + max) / 2,
      half = ((max - min) / 2) * by;
    this.look(middle - half, middle + half);
  }

  move(by) {
    const { min, max } = this.plot.scales.x;
    this.look(min + (max - min) * by, max + (max - min) * by);
  }

  /** Zoom to a range, not so closely or so far away that an axis could have no ticks. */
  look(low, high) {
    const middle = Math.min(FAR, Math.max(-FAR, (low + high) / 2));
    const least = Math.max(LEAST[this.options.axis], Math.abs(middle) * 1e-9);
    const half = Math.min(FAR, Math.max(least, high - low) / 2);
    this.zoom({ low: middle - half, high: middle + half });
  }

  saveValues() {
    const text = csv(this.options.axis, this.curves);
    save(new Blob([text], { type: "text/csv" }), `${this.subject("-")}.csv`);
  }

  async savePicture() {
    const canvas = this.canvas.querySelector("canvas");
    const title = `${this.subject(": ")} over ${this.options.axis}`;
    const keys = this.curves.length > 1 ? [...this.keys()] : [];
    if (canvas) save(await picture(title, canvas, keys), `${this.subject("-")}.png`);
  }

  /** What it shows; of one run, its name too. */
  subject(between) {
    const run = this.curves.length === 1 ? this.curves[0].run : null;
    return [run, this.name].filter(Boolean).join(between);
  }

  /** What curves are called, with the numbers by which they look as they do; several may share one. */
  keys() {
    return new Map(this.curves.map((curve) => [curve.key ?? curve.label, curve.number]));
  }

  tabulate() {
    if (!this.data.open) return;
    const places = [...new Set(this.curves.flatMap((each) => each.x))].sort((a, b) => a - b);
    const size = Math.max(1, Math.ceil(places.length / ROWS)),
      ends = new Set(this.curves.map((each) => each.x.at(-1)));
    const rows = places.filter((x, i) => i % size === 0 || ends.has(x));
    const columns = [
      { title: this.options.axis, cell: (x) => place(x, this.options.axis).replace("step ", "") },
      ...this.curves.map((each) => ({
        title: each.label,
        number: true,
        cell: (x) => {
          const bin = holding(each.x, x);
          return bin < 0 ? "–" : range(each, bin);
        },
      })),
    ];
    const shown = size > 1 ? `, every ${size} points` : "";
    this.data.replaceChildren(
      this.data.firstChild,
      wide(`${this.name}, values`, table(`${this.name} over ${this.options.axis}${shown}`, columns, rows)),
    );
  }
}

const shape = (curves) =>
  curves
    .map(
      (each) =>
        `${each.number}:${each.key}:${each.label}:${each.ghosts?.length}:${each.low.every((value, i) => value === each.high[i])}`,
    )
    .join("|");

function range(curve, bin) {
  const [low, high] = [curve.low[bin], curve.high[bin]];
  const bad = curve.bad.includes(bin);
  if (!Number.isFinite(low)) return "not finite";
  return (low === high ? figure(low) : `${figure(low)} to ${figure(high)}`) + (bad ? " and not finite" : "");
}

/** The bin that holds a place: the last one that begins at or before it; -1 before the first and behind the last. */
function holding(xs, x) {
  const last = xs.at(-1);
  if (x > last && x - last >= last - (xs.at(-2) ?? last)) return -1;
  let low = 0,
    high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

function faint(stroke, alpha) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(stroke.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}
