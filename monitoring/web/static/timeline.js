// Where a run's time went: a bar of spans, and the same as tables.

import { el, svg, table, wide } from "./dom.js";
import { clock, duration, percent, spaced, whole } from "./words.js";

const WIDTH = 1000,
  HEIGHT = 46;
const MEANING = {
  queue: "waiting for nodes",
  hold: "queued again, and not to start yet",
  "start-up": "imports, rendezvous, loading, compiling",
  training: "steps that count",
  evaluation: "measuring on held-out text",
  checkpoint: "training waited for one",
  repeated: "steps that were done again later",
  ending: "after the last step and its checkpoint",
  stopped: "over, until somebody asked for more",
  unknown: "nothing was recorded",
};
const kind = (bucket) => `bucket-${bucket.replace("-", "")}`;

export function goodput(found) {
  const total = Object.values(found.seconds).reduce((sum, each) => sum + each, 0);
  const buckets = Object.entries(found.seconds)
    .filter(([, seconds]) => seconds > 0)
    .sort((a, b) => b[1] - a[1]);
  const facts = [
    ["Goodput", percent(found.ettr), "of the wall clock was training that counts"],
    ["On nodes", percent(found.ettr_on_nodes), "of the time on nodes"],
    ["Expected", percent(found.expected), "from its failures and checkpoints, without queueing"],
    ["Failures", whole(found.failures), found.mtbf ? `one in ${duration(found.mtbf)} on nodes` : "so far"],
    [
      "Checkpoint every",
      duration(found.interval),
      found.best_interval ? `least would be lost at ${duration(found.best_interval)}` : "as measured",
    ],
  ];
  return [
    spans(found.spans),
    el(
      "div",
      { class: "columns" },
      wide(
        "Time by bucket",
        table(
          "Where the time went",
          [
            {
              title: "Bucket",
              cell: ([bucket]) => el("span", { class: `key ${kind(bucket)}`, title: MEANING[bucket] }, bucket),
            },
            { title: "Time", number: true, cell: ([, seconds]) => duration(seconds) },
            { title: "Share", number: true, cell: ([, seconds]) => percent(seconds / total) },
            { title: "Meaning", cell: ([bucket]) => MEANING[bucket] ?? "" },
          ],
          buckets,
          { class: "buckets" },
        ),
      ),
      el(
        "dl",
        { class: "facts" },
        facts
          .filter(([, value]) => value !== "–")
          .map(([name, value, words]) =>
            el(
              "div",
              {},
              el("dt", {}, name),
              el("dd", {}, el("b", {}, value), el("span", { class: "quiet" }, ` ${words}`)),
            ),
          ),
      ),
    ),
  ];
}

function spans(found) {
  if (!found.length) return el("p", { class: "quiet" }, "No time has passed.");
  const [begin, end] = [found[0][1], found.at(-1)[2]];
  const x = (at) => (WIDTH * (at - begin)) / Math.max(1e-9, end - begin);
  const bars = found.map(([bucket, from, to, attempt]) =>
    svg(
      "rect",
      {
        class: kind(bucket),
        x: x(from).toFixed(2),
        y: 0,
        width: Math.max(0.5, x(to) - x(from)).toFixed(2),
        height: HEIGHT,
      },
      svg(
        "title",
        {},
        `${bucket}${attempt === null ? "" : `, attempt ${attempt}`}: ${duration(to - from)}, from ${clock(from, 0)}`,
      ),
    ),
  );
  const seen = new Set();
  const starts = found.filter(([, , , attempt]) => attempt !== null && !seen.has(attempt) && seen.add(attempt));
  const marks = starts.map(([, from]) =>
    svg("line", { class: "start", x1: x(from).toFixed(2), x2: x(from).toFixed(2), y1: 0, y2: HEIGHT + 6 }),
  );
  const total = end - begin;
  return el(
    "figure",
    { class: "timeline" },
    svg(
      "svg",
      {
        viewBox: `0 0 ${WIDTH} ${HEIGHT + 6}`,
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": `Timeline of ${duration(total)}; the tables below say the same`,
      },
      pattern(),
      bars,
      marks,
    ),
    el(
      "div",
      { class: "steps quiet" },
      el("span", {}, clock(begin, 0)),
      el("span", {}, `${starts.length === 1 ? "one attempt" : `${starts.length} attempts, each begins at a line`}`),
      el("span", {}, clock(end, 0)),
    ),
  );
}

/** Hatched: lost time is told by more than its colour. */
function pattern() {
  return svg(
    "defs",
    {},
    svg(
      "pattern",
      { id: "hatch", width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      svg("rect", { class: "hatch-under", width: 7, height: 7 }),
      svg("line", { class: "hatch-line", x1: 0, x2: 0, y1: 0, y2: 7 }),
    ),
  );
}

export function attempts(found, now) {
  if (!found.length) return el("p", { class: "quiet" }, "No attempt was made yet.");
  return wide(
    "Attempts",
    table(
      "Attempts, the newest first",
      [
        { title: "Attempt", cell: (each) => String(each.number) },
        { title: "Job", cell: (each) => each.job_id },
        { title: "Began", cell: (each) => clock(each.began, now) },
        { title: "Lasted", number: true, cell: (each) => duration((each.ended ?? now) - each.began) },
        {
          title: "Steps",
          number: true,
          cell: (each) => (each.first_step === null ? "none" : `${whole(each.first_step)}–${whole(each.last_step)}`),
        },
        {
          title: "Lost",
          number: true,
          cell: (each) => (each.lost_steps ? el("b", { class: "bad" }, whole(each.lost_steps)) : "0"),
        },
        {
          title: "Ended by",
          cell: (each) =>
            [
              spaced(each.cause ?? (each.ended ? "unknown" : "not ended")),
              each.evidence ? ` (${each.evidence})` : "",
            ].join(""),
        },
        { title: "Nodes", cell: (each) => each.nodes.join(", ") },
      ],
      [...found].reverse(),
    ),
  );
}
