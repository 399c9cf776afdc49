// What the runs of a sweep have for parameters against what came of them: one parameter, or all at once.

import { el, svg, wide } from "./dom.js";
import { query } from "./data.js";
import { figure } from "./words.js";

const HEIGHT = 320;
const EDGE = 48;
const [LETTER, BOLD] = [6.6, 7.4]; // pixels of a letter of a value and of an axis' name, about
const LONGEST = 28; // letters of a value at an axis

/** A value as it is typed; of a number that is not whole six digits. */
export const plain = (value) =>
  typeof value === "number"
    ? String(Number.isInteger(value) ? value : Number(value.toPrecision(6)))
    : typeof value === "object"
      ? JSON.stringify(value)
      : String(value);

const round = (value) => (Number.isInteger(value) ? value : Number(value.toPrecision(4)));
const cut = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text);

/**
 * Where values stand on an axis from 0 to 1: numbers by their size, by their powers where they span several; others in
 * order. Ticks are the values that were chosen, and round places between those that were measured.
 */
function axis(values, measured) {
  const known = values.filter((value) => value !== null && value !== undefined && !Number.isNaN(value));
  const numbers = known.every((value) => typeof value === "number" && Number.isFinite(value));
  if (!numbers) {
    const order = [...new Set(known.map(plain))].sort();
    return {
      at: (value) => (order.length > 1 ? order.indexOf(plain(value)) / (order.length - 1) : 0.5),
      ticks: order.map((text, i) => [order.length > 1 ? i / (order.length - 1) : 0.5, cut(text)]),
    };
  }
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const log = low > 0 && high / low >= 10;
  const scale = (value) => (log ? Math.log(value) : value);
  const at = (value) => (high > low ? (scale(value) - scale(low)) / (scale(high) - scale(low)) : 0.5);
  const distinct = [...new Set(known)].sort((a, b) => a - b);
  if (distinct.length <= 6 && !measured) return { at, ticks: distinct.map((value) => [at(value), plain(value)]), log };
  const between = [0.25, 0.5, 0.75].map((part) => (log ? low * (high / low) ** part : low + (high - low) * part));
  const ticks = high > low ? [low, ...between, high] : [low];
  return { at, ticks: ticks.map((value) => [at(value), measured ? figure(value) : plain(round(value))]), log };
}

/** Those of the ticks that there is room for on so many pixels; size says how many a text takes. */
function fitting(ticks, room, size) {
  const shown = [];
  let end = -Infinity;
  for (const [at, text] of [...ticks].sort(([a], [b]) => a - b)) {
    const half = size(text) / 2;
    if (at * room - half < end) continue;
    shown.push([at, text]);
    end = at * room + half;
  }
  return shown;
}
const across = (text) => text.length * LETTER + 8;
const upwards = () => 14;

/** Each run as a dot: a parameter across, a metric up. Drawn for so many pixels of width. */
export function scatter(members, parameter, [metric, label], value, width) {
  const points = members
    .map((each) => ({ each, x: parameter && each.settings[parameter], y: value(each, metric) }))
    .filter(({ x, y }) => x !== undefined && x !== null && Number.isFinite(y ?? NaN));
  if (!points.length) return el("p", { class: "quiet" }, "No run has both yet.");
  const [given, found] = [
    axis(points.map(({ x }) => x)),
    axis(
      points.map(({ y }) => y),
      true,
    ),
  ];
  const left = EDGE + 20,
    room = width - left - EDGE;
  const px = (at) => left + at * room,
    py = (at) => HEIGHT - EDGE - at * (HEIGHT - 2 * EDGE);
  return el(
    "figure",
    { class: "scatter" },
    svg(
      "svg",
      {
        viewBox: `0 0 ${width} ${HEIGHT}`,
        width,
        height: HEIGHT,
        role: "group",
        "aria-label": `${label} by ${parameter}; the table above has the same values`,
      },
      fitting(given.ticks, room, across).map(([at, text]) =>
        svg("text", { x: px(at), y: HEIGHT - EDGE + 22, "text-anchor": "middle" }, text),
      ),
      found.ticks.map(([at, text]) => [
        svg("line", { class: "grid-line", x1: EDGE, x2: width - 20, y1: py(at), y2: py(at) }),
        svg("text", { x: EDGE - 6, y: py(at) + 4, "text-anchor": "end" }, text),
      ]),
      svg(
        "text",
        { class: "axis-name", x: width / 2, y: HEIGHT - 6, "text-anchor": "middle" },
        `${parameter}${given.log ? " (log)" : ""}`,
      ),
      svg("text", { class: "axis-name", x: 4, y: 18 }, label),
      points.map(({ each, x, y }) =>
        svg(
          "a",
          {
            href: `/run?${query({ run: each.key })}`,
            "data-part": `dot-${each.number}`,
            "aria-label": `run ${each.number}: ${parameter} ${plain(x)}, ${label} ${figure(y)}`,
          },
          svg(
            "circle",
            { cx: px(given.at(x)), cy: py(found.at(y)), r: 6 },
            svg("title", {}, `run ${each.number}: ${plain(x)}, ${figure(y)}`),
          ),
        ),
      ),
    ),
  );
}

/** Of each path as many of its last parts as no other path ends in. */
function short(paths) {
  return paths.map((path) => {
    const parts = path.split(".");
    for (let count = 1; count < parts.length; count++) {
      const end = parts.slice(-count).join(".");
      if (!paths.some((other) => other !== path && (other === end || other.endsWith(`.${end}`)))) return end;
    }
    return path;
  });
}

/** Where axes stand so that names and values are clear of each other, and the width of all, at least the given one. */
function apart(titles, scales, width) {
  const half = titles.map((text) => Math.max(24, (text.length * BOLD) / 2));
  const values = scales.map(({ ticks }) => Math.max(...ticks.map(([, text]) => text.length)) * LETTER + 24);
  const gaps = half.slice(1).map((each, i) => Math.max(half[i] + each + 16, values[i]));
  const [first, right] = [half[0], Math.max(half.at(-1), values.at(-1))];
  const least = first + right + gaps.reduce((sum, each) => sum + each, 0);
  const more = Math.max(0, width - least) / gaps.length;
  const places = [first];
  for (const gap of gaps) places.push(places.at(-1) + gap + more);
  return [places, Math.max(width, least)];
}

/** A line a run through its parameters and what came of it: the darker, the lower the metric. */
export function coordinates(members, names, [metric, label], value, width) {
  const several = names.filter((id) => new Set(members.map((each) => JSON.stringify(each.settings[id]))).size > 1);
  const lines = members.filter((each) => Number.isFinite(value(each, metric) ?? NaN));
  if (lines.length < 2 || several.length < 2)
    return el("p", { class: "quiet" }, "Shown for two parameters and two runs with figures, or more.");
  const axes = [...several, metric],
    titles = [...short(several), label];
  const scales = axes.map((id, i) =>
    axis(
      lines.map((each) => value(each, id)),
      i === axes.length - 1,
    ),
  );
  const [places, all] = apart(titles, scales, width);
  const x = (i) => places[i],
    y = (at) => HEIGHT - 40 - at * (HEIGHT - 90);
  const best = scales.at(-1);
  return wide(
    "Parallel coordinates",
    svg(
      "svg",
      {
        class: "parallel",
        viewBox: `0 0 ${all} ${HEIGHT}`,
        width: all,
        height: HEIGHT,
        role: "group",
        "aria-label": "A line for each run through its parameters and the metric; the table above has the same values",
      },
      axes.map((id, i) => [
        svg("line", { class: "axis-line", x1: x(i), x2: x(i), y1: y(0), y2: y(1) }),
        svg("text", { class: "axis-name", x: x(i), y: 20, "text-anchor": "middle" }, titles[i], svg("title", {}, id)),
      ]),
      lines.map((each) => {
        const points = axes
          .map((id, i) => [x(i), value(each, id), scales[i]])
          .filter(([, one]) => one !== null && one !== undefined && !Number.isNaN(one))
          .map(([at, one, scale]) => `${at},${y(scale.at(one))}`);
        return svg(
          "a",
          {
            href: `/run?${query({ run: each.key })}`,
            "data-part": `line-${each.number}`,
            "aria-label": `run ${each.number}: ${axes.map((id) => `${id} ${plain(value(each, id))}`).join(", ")}`,
          },
          svg(
            "polyline",
            {
              class: `run-line part-${Math.min(4, Math.floor(best.at(value(each, metric)) * 5))}`,
              points: points.join(" "),
            },
            svg("title", {}, `run ${each.number}: ${figure(value(each, metric))}`),
          ),
        );
      }),
      // Over the lines, which would cross them out.
      scales.map(({ ticks }, i) =>
        fitting(ticks, HEIGHT - 90, upwards).map(([at, text]) =>
          svg("text", { class: "value", x: x(i) + 6, y: y(at) + 4 }, text),
        ),
      ),
    ),
  );
}
