import { badge, crumbs, el, field, keepingFocus, select, svg } from "./dom.js";
import { Choice } from "./choice.js";
import { follow, query } from "./data.js";
import { count, duration, figure, num, percent, plural, whole } from "./words.js";

const COLUMNS = [
  { id: "run", title: "Run", by: (run) => run.key },
  { id: "state", title: "State", by: (run) => run.state },
  { id: "share", title: "Progress", by: (run) => run.share },
  { id: "loss", title: "Loss", number: true, by: (run) => num(run.loss) },
  { id: "tokens_per_s", title: "Tokens/s", number: true, by: (run) => run.tokens_per_s },
  { id: "eta_s", title: "ETA", number: true, by: (run) => run.eta_s },
  { id: "ettr", title: "Goodput", number: true, by: (run) => run.ettr },
  { id: "findings", title: "Findings", by: (run) => weight(run.findings) },
];
const ENDED = ["finished", "failed", "cancelled"];
const SEVERITIES = ["critical", "warning", "info"];

const weight = (findings) =>
  (findings ?? []).reduce((sum, each) => sum + [1e6, 1e3, 1][SEVERITIES.indexOf(each.severity)], 0);
const place = (run) => `/run?${query({ run: run.key })}`;

export function show(main) {
  crumbs();
  document.title = "Runs";
  const runs = new Map(); // key -> {run, row, text}
  const chosen = new Choice();
  let sort = { id: null, down: true };
  let order = []; // as the server lists them, newest first
  let wanted = "",
    which = "all",
    trouble = "", // why the list cannot be read now
    dirty = false;

  const search = el("input", {
    type: "search",
    placeholder: "name, id, tag, cluster",
    oninput: () => {
      wanted = search.value.toLowerCase();
      arrange();
    },
  });
  const states = select(
    [
      ["all", "all"],
      ["live", "not ended"],
      ["running", "running"],
      ["finished", "finished"],
      ["failed", "failed"],
      ["found", "with findings"],
    ],
    "all",
    (value) => {
      which = value;
      arrange();
    },
  );
  const said = el("p", { class: "quiet", role: "status" });
  const body = el("tbody");
  const buttons = new Map();
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, el("span", { class: "hidden" }, "Compare")),
    COLUMNS.map((column) => {
      const button = el("button", { type: "button", class: "sort", onclick: () => turn(column.id) }, column.title);
      const cell = el("th", { scope: "col", class: column.number && "number" }, button);
      buttons.set(column.id, cell);
      return cell;
    }),
  );
  const sorting = select([["", "newest first"], ...COLUMNS.map((each) => [each.id, each.title])], "", (id) => {
    sort = { id: id || null, down: id !== "run" };
    arrange();
  });
  const sweeps = el("ul", { class: "plain" });
  const sweepPart = el(
    "section",
    { hidden: true, "aria-labelledby": "sweeps-title" },
    el("h2", { id: "sweeps-title" }, "Sweeps"),
    sweeps,
  );

  main.replaceChildren(
    el("h1", {}, "Runs"),
    el(
      "div",
      { class: "tools" },
      field("Filter", search),
      field("Show", states),
      el("span", { class: "phone" }, field("Sort by", sorting)),
      chosen.node,
    ),
    said,
    el(
      "table",
      { class: "runs cards" },
      el("caption", { class: "hidden" }, "Runs, newest first unless sorted"),
      el("thead", {}, head),
      body,
    ),
    sweepPart,
  );

  function turn(id) {
    sort =
      sort.id === id
        ? sort.down
          ? { id, down: false }
          : { id: null, down: true }
        : { id, down: id !== "run" && id !== "state" };
    sorting.value = sort.id ?? "";
    arrange();
  }

  const matches = ({ run, text }) =>
    (!wanted || wanted.split(/\s+/).every((word) => text.includes(word))) &&
    (which === "all" ||
      which === run.state ||
      (which === "live" && !ENDED.includes(run.state)) ||
      (which === "found" && run.findings?.length));

  function arrange() {
    for (const [id, cell] of buttons) {
      if (sort.id === id) cell.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    let shown = order.map((key) => runs.get(key)).filter((each) => each && matches(each));
    if (sort.id) {
      const by = COLUMNS.find((column) => column.id === sort.id).by;
      const compared = (a, b) => {
        const [x, y] = [by(a.run), by(b.run)];
        const [none, other] = [
          x === null || x === undefined || Number.isNaN(x),
          y === null || y === undefined || Number.isNaN(y),
        ];
        if (none || other) return none - other; // what is not known stands last
        return (sort.down ? -1 : 1) * (typeof x === "string" ? x.localeCompare(y) : x - y);
      };
      shown.sort(compared);
    }
    // Rows that stay where they are stay the same nodes, and so does the focus in them.
    const rows = shown.map((each) => each.row);
    if (rows.length !== body.children.length || rows.some((row, i) => body.children[i] !== row)) {
      const focused = document.activeElement;
      body.replaceChildren(...rows);
      if (body.contains(focused)) focused.focus();
    }
    const live = [...runs.values()].filter((each) => !ENDED.includes(each.run.state)).length;
    const text = trouble
      ? `the runs cannot be read: ${trouble}`
      : runs.size === 0
        ? "There is no run yet. To start one: hpc submit"
        : `${plural(runs.size, "run")}, ${live} not ended` +
          (shown.length < runs.size ? `, ${shown.length} shown` : "");
    if (said.textContent !== text) said.textContent = text;
  }

  function take(run) {
    const before = runs.get(run.key);
    const row = before?.row ?? el("tr");
    const text = [run.key, run.state, run.cluster, run.note, ...run.tags.map((tag) => `#${tag}`)]
      .join(" ")
      .toLowerCase();
    keepingFocus(row, () => row.replaceChildren(...cells(run, chosen)));
    runs.set(run.key, { run, row, text });
  }

  follow(() => ({}), {
    begin() {
      runs.clear();
      order = [];
      trouble = "";
    },
    set(name, value) {
      if (name === "sweeps") showSweeps(value);
      else if (name === "order") order = value;
      else if (name.startsWith("run:")) take(value);
      else if (name === "trouble") trouble = value;
      dirty = true;
    },
    gone(name) {
      if (name.startsWith("run:")) runs.delete(name.slice(4));
      else if (name === "trouble") trouble = "";
      dirty = true;
    },
    done() {
      if (dirty) arrange();
      dirty = false;
    },
  });

  function showSweeps(found) {
    sweepPart.hidden = !found.length;
    sweeps.replaceChildren(
      ...found.map((each) =>
        el(
          "li",
          {},
          el("a", { href: `/sweep?${query({ sweep: each.key })}` }, each.key),
          el("span", { class: "quiet" }, ` ${each.begun} of ${plural(each.runs, "run")} begun`),
        ),
      ),
    );
  }
}

function cells(run, chosen) {
  const [name, id] = [run.key.slice(0, run.key.lastIndexOf("/")), run.key.slice(run.key.lastIndexOf("/") + 1)];
  const loss = num(run.loss);
  return [
    el("td", { class: "pick" }, chosen.box(run.key, run.key, "box")),
    el(
      "th",
      { scope: "row", "data-label": "Run" },
      el(
        "a",
        { href: place(run), "data-part": "link", class: "name" },
        el("span", {}, name),
        el("span", { class: "id" }, id),
      ),
      run.tags.length || run.note
        ? el(
            "span",
            { class: "tags" },
            run.tags.map((tag) => el("span", { class: "tag" }, `#${tag}`)),
            run.note,
          )
        : null,
    ),
    el(
      "td",
      { "data-label": "State", class: "stand" },
      badge(run.state),
      run.emulated ? el("span", { class: "badge emulated" }, "EMULATED") : null,
      run.reason ? el("span", { class: "reason", title: run.reason }, run.reason) : null,
    ),
    el(
      "td",
      { "data-label": "Progress", class: "going" },
      bar(run),
      el("span", { class: "quiet" }, run.step === null ? "no step yet" : `step ${whole(run.step)}`),
    ),
    el(
      "td",
      { "data-label": "Loss", class: "number loss" },
      spark(run.spark),
      el("span", { class: loss !== null && !Number.isFinite(loss) && "bad" }, figure(run.loss)),
    ),
    el("td", { "data-label": "Tokens/s", class: "number" }, count(run.tokens_per_s)),
    el("td", { "data-label": "ETA", class: "number" }, ENDED.includes(run.state) ? "–" : duration(run.eta_s)),
    el("td", { "data-label": "Goodput", class: "number" }, percent(run.ettr, 0)),
    el("td", { "data-label": "Findings", class: !run.findings?.length && "empty" }, findings(run.findings)),
  ];
}

export function bar(run) {
  if (run.share === null || run.share === undefined) return null;
  const meter = el("progress", { max: 1, "aria-label": "tokens" });
  meter.value = run.share;
  return el("span", { class: "meter" }, meter, el("b", {}, percent(run.share)));
}

function findings(found) {
  if (!found?.length) return el("span", { class: "quiet" }, found ? "none" : "–");
  const worst = SEVERITIES.find((each) => found.some((finding) => finding.severity === each));
  const rest = found.length > 1 ? ` and ${found.length - 1} more` : "";
  const title = found.find((each) => each.severity === worst).title;
  return el("span", { class: `finding-line ${worst}` }, el("b", {}, worst), ` ${title}${rest}`);
}

function spark(values) {
  if (!values || values.length < 2) return null;
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const y = (value) => (high > low ? 15 - (14 * (value - low)) / (high - low) : 8).toFixed(1);
  const points = values.map((value, i) => `${((60 * i) / (values.length - 1)).toFixed(1)},${y(value)}`).join(" ");
  return svg("svg", { class: "spark", viewBox: "0 0 60 16", "aria-hidden": "true" }, svg("polyline", { points }));
}
