// Figures and times as people read them, as in the terminal.

/** A number as the records spell it: NaN and infinities are strings there. */
export function num(value) {
  if (typeof value !== "string") return value ?? null;
  return { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity }[value] ?? null;
}

export function count(value) {
  if (value === null || value === undefined) return "–";
  for (const [unit, size] of [
    ["T", 1e12],
    ["B", 1e9],
    ["M", 1e6],
    ["k", 1e3],
  ]) {
    if (Math.abs(value) >= 0.9995 * size) {
      const scaled = value / size;
      return scaled.toFixed(Math.abs(scaled) < 9.995 ? 2 : Math.abs(scaled) < 99.95 ? 1 : 0) + unit;
    }
  }
  return value.toFixed(0);
}

export function figure(given) {
  const value = num(given);
  if (value === null) return "–";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "Inf" : "-Inf";
  if (value === 0) return "0";
  const exponent = Math.floor(Math.log10(Math.abs(value)));
  return exponent >= -4 && exponent < 6 ? value.toFixed(Math.max(0, 3 - exponent)) : value.toExponential(3);
}

export const whole = (value) => (value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en"));

/** A number of which nothing else is known: whole ones as they are. */
export const number = (value) => (Number.isInteger(value) ? whole(value) : figure(value));

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const all = Math.max(0, Math.round(seconds));
  const [d, h, m, s] = [Math.floor(all / 86400), Math.floor(all / 3600) % 24, Math.floor(all / 60) % 60, all % 60];
  if (d) return `${d} d ${h} h`;
  if (h) return `${h} h ${m} min`;
  return m ? `${m} min ${s} s` : `${s} s`;
}

/** How long ago, as roughly as one wants to know it. */
export function ago(seconds) {
  const all = Math.max(0, Math.round(seconds));
  for (const [unit, size] of [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
  ])
    if (all >= 2 * size) return `${Math.floor(all / size)} ${unit} ago`;
  return `${all} s ago`;
}

export const percent = (share, digits = 1) =>
  share === null || share === undefined
    ? "–"
    : `${(Math.floor(share * 100 * 10 ** digits) / 10 ** digits).toFixed(digits)} %`;

const two = (number) => String(number).padStart(2, "0");
/** A moment: of today the time, of another day the date too. */
export function clock(seconds, now = Date.now() / 1000) {
  if (!seconds) return "–";
  const then = new Date(seconds * 1000);
  const time = `${two(then.getHours())}:${two(then.getMinutes())}`;
  if (then.toDateString() === new Date(now * 1000).toDateString()) return time;
  return `${then.getFullYear()}-${two(then.getMonth() + 1)}-${two(then.getDate())} ${time}`;
}

export const plural = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;
export const spaced = (name) => String(name).replaceAll("_", " ");

/** The middle of those that are finite; null without any. */
export function median(values) {
  const known = values.filter((value) => value !== null && Number.isFinite(value)).sort((a, b) => a - b);
  return known.length ? (known[(known.length - 1) >> 1] + known[known.length >> 1]) / 2 : null;
}
