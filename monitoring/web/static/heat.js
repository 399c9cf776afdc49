// A heat map: rows of values over steps or time. Cells are read by pointer and by keyboard; beside it stands a table.

import { el } from "./dom.js";

const ASK = "Point at a cell, or focus the map and use the arrow keys.";
const scheme = matchMedia("(prefers-color-scheme: dark)");
const rgb = (name) => {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
};

/** From few to many through a middle: three colours of the page, mixed. */
function ramp(names) {
  const stops = names.map(rgb);
  return (share) => {
    const at = Math.min(0.9999, Math.max(0, share)) * (stops.length - 1);
    const [i, part] = [Math.floor(at), at % 1];
    return stops[i].map((value, c) => Math.round(value + (stops[i + 1][c] - value) * part));
  };
}

export class Heat {
  /** @param label says what it is; @param say(row, column) puts a cell into words; @param share(row, column) is 0 to 1 or null. */
  constructor(label, { say, share, colours, ends }) {
    this.label = label;
    this.say = say;
    this.share = share;
    this.colours = colours;
    this.rows = this.columns = 0;
    this.at = null;
    this.canvas = el("canvas", {
      class: "heat",
      tabindex: 0,
      role: "img",
      onpointermove: (event) => this.hover(event),
      onkeydown: (event) => this.key(event),
    });
    this.readout = el("output", { class: "readout" }, ASK);
    [this.low, this.high] = ends.map((each) => el("span", {}, each));
    this.from = el("span");
    this.to = el("span");
    this.node = el(
      "figure",
      { class: "chart" },
      this.canvas,
      el("div", { class: "steps quiet" }, this.from, this.to),
      this.readout,
      el(
        "p",
        { class: "scale quiet" },
        this.low,
        el("canvas", { class: "ramp", width: 64, height: 1, "aria-hidden": "true" }),
        this.high,
      ),
    );
    scheme.addEventListener("change", () => this.draw());
  }

  /** What is shown from now on: something else on another scale. */
  become(label, colours, ends) {
    [this.label, this.colours, this.at] = [label, colours, null];
    [this.low.textContent, this.high.textContent] = ends;
    this.readout.textContent = ASK;
  }

  show(rows, columns, from, to) {
    [this.rows, this.columns] = [rows, columns];
    this.from.textContent = from;
    this.to.textContent = to;
    this.canvas.setAttribute(
      "aria-label",
      `${this.label}: ${rows} rows, ${from} to ${to}. Arrow keys read cells. The table below has the same in figures.`,
    );
    this.draw();
  }

  draw() {
    const mix = ramp(this.colours),
      none = rgb("--empty");
    const bar = this.node.querySelector(".ramp").getContext("2d"),
      scale = bar.createImageData(64, 1);
    for (let i = 0; i < 64; i++) scale.data.set([...mix(i / 63), 255], 4 * i);
    bar.putImageData(scale, 0, 0);
    if (!this.rows || !this.columns) return;
    this.canvas.width = this.columns;
    this.canvas.height = this.rows;
    this.canvas.style.height = `${Math.min(480, Math.max(48, this.rows * (this.rows < 24 ? 16 : 6)))}px`;
    const context = this.canvas.getContext("2d"),
      image = context.createImageData(this.columns, this.rows);
    for (let row = 0; row < this.rows; row++) {
      for (let column = 0; column < this.columns; column++) {
        const share = this.share(row, column);
        image.data.set([...(share === null ? none : mix(share)), 255], 4 * (row * this.columns + column));
      }
    }
    context.putImageData(image, 0, 0);
  }

  hover(event) {
    const box = this.canvas.getBoundingClientRect();
    this.point(
      Math.floor(((event.clientY - box.top) / box.height) * this.rows),
      Math.floor(((event.clientX - box.left) / box.width) * this.columns),
    );
  }

  key(event) {
    const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const [row, column] = this.at ?? [0, this.columns - 1 - by[1]];
    this.point(row + by[0], column + by[1]);
  }

  point(row, column) {
    if (!this.rows || !this.columns) return;
    this.at = [Math.min(this.rows - 1, Math.max(0, row)), Math.min(this.columns - 1, Math.max(0, column))];
    this.readout.textContent = this.say(...this.at);
  }
}
