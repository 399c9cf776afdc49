import { badge, crumbs, el, field, section, select, svg, wide } from "./dom.js";
import { get, query } from "./data.js";
import { figure, num, plural, whole } from "./words.js";

const METRICS = [
  ["validation_loss", "validation loss"],
  ["loss", "loss"],
  ["tokens_per_s", "tokens/s"],
  ["tokens", "tokens"],
];
const EVERY = 10; // seconds
const [WIDTH, HEIGHT, EDGE] = [640, 320, 48];

export function show(main, given) {
  const name = given.get("sweep") ?? "";
  crumbs([name]);
  document.title = name;
  let found = { members: [] },
    sort = { id: "number", down: false },
    parameter = null,
    metric = "validation_loss";
  const chosen = new Set();
  const said = el("p", { class: "quiet", role: "status" }),
    runs = el("div"),
    tools = el("div", { class: "tools" }),
    plot = el("div"),
    parallel = el("div");
  const compare = el("a", { class: "button", "aria-disabled": "true" }, "Compare");
  main.replaceChildren(
    el("h1", {}, name),
    said,
    section("runs", "Runs", compare, runs),
    section("against", "Parameter against metric", tools, plot),
    section("parallel", "All parameters", parallel),
  );

  const parameters = () => [...new Set(found.members.flatMap((each) => Object.keys(each.settings)))];
  const value = (member, id) => (id in member.settings ? member.settings[id] : num(member[id]));

  function draw() {
    const names = parameters();
    parameter = names.includes(parameter)
      ? parameter
      : (names.find((id) => new Set(found.members.map((each) => JSON.stringify(each.settings[id]))).size > 1) ??
        names[0] ??
        null);
    const begun = found.members.filter((each) => each.key).length;
    said.textContent = `${plural(found.members.length, "run")}, ${begun} begun${found.cancelled ? ", cancelled" : ""}`;
    rows(names);
    tools.replaceChildren(
      field(
        "Parameter",
        select(
          names.map((id) => [id, id]),
          parameter,
          (id) => {
            parameter = id;
            draw();
          },
        ),
      ),
      field(
        "Metric",
        select(METRICS, metric, (id) => {
          metric = id;
          draw();
        }),
      ),
    );
    plot.replaceChildren(scatter(found.members, parameter, metric, value));
    parallel.replaceChildren(coordinates(found.members, names, metric, value));
  }

  function rows(names) {
    const columns = [
      ["number", "Run"],
      ["state", "State"],
      ...names.map((id) => [id, id]),
      ["validation_loss", "Validation loss"],
      ["loss", "Loss"],
      ["tokens_per_s", "Tokens/s"],
      ["step", "Step"],
    ];
    const sorted = [...found.members].sort((a, b) => {
      const [x, y] = [value(a, sort.id), value(b, sort.id)].map((each) => each ?? (sort.id === "state" ? null : each));
      const [p, q] = sort.id === "state" ? [a.state, b.state] : [x, y];
      const [none, other] = [p, q].map((each) => each === null || each === undefined || Number.isNaN(each));
      if (none || other) return none - other;
      return (
        (sort.down ? -1 : 1) *
        (typeof p === "number" && typeof q === "number" ? p - q : String(p).localeCompare(String(q)))
      );
    });
    const best = Math.min(...found.members.map((each) => num(each.validation_loss)).filter(Number.isFinite));
    const head = columns.map(([id, title], i) =>
      el(
        "th",
        {
          scope: "col",
          class: i > 1 && "number",
          "aria-sort": sort.id === id ? (sort.down ? "descending" : "ascending") : null,
        },
        el(
          "button",
          {
            type: "button",
            class: "sort",
            "data-id": id,
            onclick: () => {
              sort = { id, down: sort.id === id && !sort.down };
              rows(names);
              runs.querySelector(`[data-id="${CSS.escape(id)}"]`).focus();
            },
          },
          title,
        ),
      ),
    );
    const body = sorted.map((each) =>
      el(
        "tr",
        {},
        el(
          "th",
          { scope: "row", class: "pick" },
          each.key ? box(each) : null,
          each.key ? el("a", { href: `/run?${query({ run: each.key })}` }, String(each.number)) : String(each.number),
        ),
        el("td", {}, badge(each.state)),
        names.map((id) => el("td", { class: "number" }, id in each.settings ? plain(each.settings[id]) : "–")),
        el(
          "td",
          { class: "number" },
          num(each.validation_loss) === best
            ? el("b", {}, `${figure(each.validation_loss)} lowest`)
            : figure(each.validation_loss),
        ),
        el("td", { class: "number" }, figure(each.loss)),
        el("td", { class: "number" }, each.tokens_per_s ? whole(each.tokens_per_s) : "–"),
        el("td", { class: "number" }, whole(each.step)),
      ),
    );
    runs.replaceChildren(
      wide(
        "Runs of the sweep",
        el(
          "table",
          {},
          el("caption", {}, "Runs, in what they differ and what came of it"),
          el("thead", {}, el("tr", {}, head)),
          el("tbody", {}, body),
        ),
      ),
    );
  }

  function box(each) {
    const node = el("input", {
      type: "checkbox",
      "aria-label": `compare run ${each.number}`,
      onchange: () => {
        if (node.checked) chosen.add(each.key);
        else chosen.delete(each.key);
        compare.textContent = chosen.size ? `Compare ${chosen.size}` : "Compare";
        if (chosen.size > 1) {
          compare.setAttribute("href", `/compare?${query({ run: [...chosen] })}`);
          compare.removeAttribute("aria-disabled");
        } else {
          compare.removeAttribute("href");
          compare.setAttribute("aria-disabled", "true");
        }
      },
    });
    node.checked = chosen.has(each.key);
    return node;
  }

  async function load() {
    try {
      const fresh = await get("/api/sweep", { sweep: name });
      if (JSON.stringify(fresh) === JSON.stringify(found)) return;
      found = fresh;
      draw();
    } catch (error) {
      said.textContent = error.message;
    }
  }
  load();
  setInterval(() => {
    if (document.visibilityState === "visible") load();
  }, 1000 * EVERY);
  document.getElementById("link").textContent = "";
}

const plain = (value) =>
  typeof value === "number"
    ? String(Number(value.toPrecision(6)))
    : typeof value === "object"
      ? JSON.stringify(value)
      : String(value);

/** Where values stand on an axis from 0 to 1: numbers by their size, by their powers where they span several; others in order. */
function axis(values) {
  const known = values.filter((value) => value !== null && value !== undefined && !Number.isNaN(value));
  const numbers = known.every((value) => typeof value === "number" && Number.isFinite(value));
  if (!numbers) {
    const order = [...new Set(known.map(plain))].sort();
    return {
      at: (value) => (order.length > 1 ? order.indexOf(plain(value)) / (order.length - 1) : 0.5),
      ticks: order.map((text, i) => [order.length > 1 ? i / (order.length - 1) : 0.5, text]),
    };
  }
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const log = low > 0 && high / low >= 10;
  const scale = (value) => (log ? Math.log(value) : value);
  const at = (value) => (high > low ? (scale(value) - scale(low)) / (scale(high) - scale(low)) : 0.5);
  const distinct = [...new Set(known)].sort((a, b) => a - b);
  const shown =
    distinct.length <= 6
      ? distinct
      : [low, ...[0.25, 0.5, 0.75].map((part) => (log ? low * (high / low) ** part : low + (high - low) * part)), high];
  return { at, ticks: shown.map((value) => [at(value), plain(Number(value.toPrecision(4)))]), log };
}

function scatter(members, parameter, metric, value) {
  const points = members
    .map((each) => ({ each, x: parameter && each.settings[parameter], y: value(each, metric) }))
    .filter(({ x, y }) => x !== undefined && x !== null && Number.isFinite(y ?? NaN));
  if (!points.length) return el("p", { class: "quiet" }, "No run has both yet.");
  const [across, up] = [axis(points.map(({ x }) => x)), axis(points.map(({ y }) => y))];
  const px = (x) => EDGE + 20 + across.at(x) * (WIDTH - 2 * EDGE - 20),
    py = (y) => HEIGHT - EDGE - up.at(y) * (HEIGHT - 2 * EDGE);
  const label = METRICS.find(([id]) => id === metric)[1];
  return el(
    "figure",
    { class: "scatter" },
    svg(
      "svg",
      {
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        role: "group",
        "aria-label": `${label} by ${parameter}; the table above has the same values`,
      },
      across.ticks.map(([at, text]) =>
        svg(
          "text",
          { x: EDGE + 20 + at * (WIDTH - 2 * EDGE - 20), y: HEIGHT - EDGE + 22, "text-anchor": "middle" },
          text,
        ),
      ),
      up.ticks.map(([at, text]) => [
        svg("line", {
          class: "grid-line",
          x1: EDGE,
          x2: WIDTH - 20,
          y1: HEIGHT - EDGE - at * (HEIGHT - 2 * EDGE),
          y2: HEIGHT - EDGE - at * (HEIGHT - 2 * EDGE),
        }),
        svg("text", { x: EDGE - 6, y: HEIGHT - EDGE - at * (HEIGHT - 2 * EDGE) + 4, "text-anchor": "end" }, text),
      ]),
      svg(
        "text",
        { class: "axis-name", x: WIDTH / 2, y: HEIGHT - 6, "text-anchor": "middle" },
        `${parameter}${across.log ? " (log)" : ""}`,
      ),
      svg("text", { class: "axis-name", x: EDGE, y: 18, "text-anchor": "middle" }, label),
      points.map(({ each, x, y }) =>
        svg(
          "a",
          {
            href: `/run?${query({ run: each.key })}`,
            "aria-label": `run ${each.number}: ${parameter} ${plain(x)}, ${label} ${figure(y)}`,
          },
          svg(
            "circle",
            { cx: px(x), cy: py(y), r: 6 },
            svg("title", {}, `run ${each.number}: ${plain(x)}, ${figure(y)}`),
          ),
        ),
      ),
    ),
  );
}

/** A line a run through all that it changes and what came of it: the darker, the lower the metric. */
function coordinates(members, names, metric, value) {
  const several = names.filter((id) => new Set(members.map((each) => JSON.stringify(each.settings[id]))).size > 1);
  const axes = [...several, metric];
  const lines = members.filter((each) => Number.isFinite(value(each, metric) ?? NaN));
  if (lines.length < 2 || axes.length < 3)
    return el("p", { class: "quiet" }, "Shown for two parameters and two runs with figures, or more.");
  const scales = new Map(axes.map((id) => [id, axis(lines.map((each) => value(each, id)))]));
  const width = Math.max(WIDTH, axes.length * 130);
  const x = (i) => 60 + (i * (width - 120)) / (axes.length - 1),
    y = (at) => HEIGHT - 40 - at * (HEIGHT - 90);
  const best = axis(lines.map((each) => value(each, metric)));
  return wide(
    "Parallel coordinates",
    svg(
      "svg",
      {
        class: "parallel",
        viewBox: `0 0 ${width} ${HEIGHT}`,
        width,
        height: HEIGHT,
        role: "group",
        "aria-label": "A line for each run through its parameters and the metric; the table above has the same values",
      },
      axes.map((id, i) => [
        svg("line", { class: "axis-line", x1: x(i), x2: x(i), y1: y(0), y2: y(1) }),
        svg("text", { class: "axis-name", x: x(i), y: 20, "text-anchor": "middle" }, id),
        scales.get(id).ticks.map(([at, text]) => svg("text", { x: x(i) + 6, y: y(at) + 4 }, text)),
      ]),
      lines.map((each) => {
        const points = axes
          .map((id, i) => {
            const one = value(each, id);
            return one === null || one === undefined || Number.isNaN(one)
              ? null
              : `${x(i)},${y(scales.get(id).at(one))}`;
          })
          .filter(Boolean);
        return svg(
          "a",
          {
            href: `/run?${query({ run: each.key })}`,
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
    ),
  );
}
