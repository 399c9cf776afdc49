// How curves look: each has a colour and dashes by its number, the same in every chart and in every key.

import { svg } from "./dom.js";

const COLOURS = 6; // --line-0 and so on
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [14, 4]]; // curves differ in more than their colour

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const stroke = (number) => colour(`--line-${number % COLOURS}`);
export const dash = (number) => DASHES[number % DASHES.length];

/** A piece of the curve of that number, for a key. */
export const piece = (number) =>
  svg(
    "svg",
    { class: "piece", viewBox: "0 0 34 8", width: 34, height: 8, "aria-hidden": "true" },
    svg("line", {
      class: `line-${number % COLOURS}`,
      x1: 0,
      x2: 34,
      y1: 4,
      y2: 4,
      "stroke-dasharray": dash(number).join(" ") || null,
    }),
  );
