// A chart as a file: its values as CSV, or what is seen of it as PNG.

import { colour, dash, stroke } from "./lines.js";

const [EDGE, LINE] = [14, 20]; // pixels around the picture, and of a line of its key
const FONT = "13px system-ui, sans-serif";

/** Hand a file to whoever looks. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\w.-]+/g, "_");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A row for each place that a curve has a bin at; a bin of several steps has its lowest and its highest value. */
export function csv(axis, curves) {
  const columns = curves.flatMap(({ label, x, low, high }) => {
    const at = (values) => new Map(x.map((place, bin) => [place, values[bin] ?? "NaN"]));
    const same = low.every((value, bin) => Object.is(value, high[bin]));
    if (same) return [{ title: label, at: at(low) }];
    return [
      { title: `${label}, lowest`, at: at(low) },
      { title: `${label}, highest`, at: at(high) },
    ];
  });
  const places = [...new Set(curves.flatMap((each) => each.x))].sort((a, b) => a - b);
  const rows = places.map((place) => [place, ...columns.map((each) => each.at.get(place) ?? "")]);
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  return [[axis, ...columns.map((each) => quoted(each.title))], ...rows].map((row) => `${row.join(",")}\n`).join("");
}

/** What is seen of a chart, its name above and its key below. */
export function picture(name, canvas, keys) {
  const ratio = devicePixelRatio;
  const [width, height] = [canvas.width / ratio + 2 * EDGE, canvas.height / ratio + LINE * (keys.length + 2) + EDGE];
  const drawn = document.createElement("canvas");
  [drawn.width, drawn.height] = [width * ratio, height * ratio];
  const pen = drawn.getContext("2d");
  pen.scale(ratio, ratio);
  pen.fillStyle = colour("--card");
  pen.fillRect(0, 0, width, height);
  pen.drawImage(canvas, EDGE, EDGE + LINE, canvas.width / ratio, canvas.height / ratio);
  pen.fillStyle = colour("--text");
  pen.textBaseline = "middle";
  pen.font = `600 ${FONT}`;
  pen.fillText(name, EDGE, EDGE + LINE / 2);
  pen.font = FONT;
  pen.lineWidth = 2;
  keys.forEach(([text, number], i) => {
    const y = EDGE + LINE * (i + 1.5) + canvas.height / ratio;
    pen.strokeStyle = stroke(number);
    pen.setLineDash(dash(number));
    pen.beginPath();
    pen.moveTo(EDGE, y);
    pen.lineTo(EDGE + 34, y);
    pen.stroke();
    pen.fillText(text, EDGE + 44, y);
  });
  return new Promise((done) => drawn.toBlob(done, "image/png"));
}
