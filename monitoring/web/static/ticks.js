// Places and values at the axes of a chart, in words.

import { count, figure, whole } from "./words.js";

/** Where on the axis one looks. */
export const place = (value, axis) =>
  axis === "hours" ? `${figure(value)} h` : axis === "tokens" ? `${count(value)} tokens` : `step ${whole(value)}`;

/** A place on the axis in as few figures as tell it from the next one. */
export function tick(value, axis, { min, max }) {
  if (axis === "hours") return trimmed(figure(value));
  return max < 1e5 || max - min < max / 20 ? whole(value) : trimmed(count(value));
}

/** 1.20k as 1.2k, and 3.000 as 3. */
const trimmed = (text) => text.replace(/(\.\d*?)0+(?=\D*$)/, "$1").replace(/\.(?=\D*$)/, "");

/** A value of a metric. */
export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e4) return trimmed(count(value));
  return size < 1e-3 ? Number(value.toPrecision(3)).toExponential() : String(Number(value.toPrecision(4)));
}
