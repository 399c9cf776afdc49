import { badge, crumbs, el, field, keepingFocus, offer, section, select, wide } from "./dom.js";
import { Choice } from "./choice.js";
import { get, query } from "./data.js";
import { coordinates, plain, scatter } from "./parameters.js";
import { figure, num, plural, whole } from "./words.js";

const METRICS = [
  ["validation_loss", "validation loss"],
  ["loss", "loss"],
  ["tokens_per_s", "tokens/s"],
  ["tokens", "tokens"],
];
const EVERY = 10; // seconds
const WIDEST = 760; // pixels of the plot of one parameter

export function show(main, given) {
  const name = given.get("sweep") ?? "";
  crumbs([name]);
  document.title = name;
  let found = { members: [] },
    sort = { id: "number", down: false },
    parameter = null, // that was chosen
    metric = null;
  const chosen = new Choice();
  const said = el("p", { class: "quiet", role: "status" }),
    table = wide("Runs of the sweep"),
    plot = el("div"),
    parallel = el("div");
  const choices = {
    parameter: select([], null, (id) => {
      parameter = id;
      draw();
    }),
    metric: select(METRICS, null, (id) => {
      metric = id;
      draw();
    }),
  };
  main.replaceChildren(
    el("h1", {}, name),
    said,
    section("runs", "Runs", chosen.node, table),
    section(
      "against",
      "Parameter against metric",
      el("div", { class: "tools" }, field("Parameter", choices.parameter), field("Metric", choices.metric)),
      plot,
    ),
    section("parallel", "All parameters", parallel),
  );

  const value = (member, id) => (id in member.settings ? member.settings[id] : num(member[id]));

  function draw() {
    const names = Object.keys(found.members[0]?.settings ?? {});
    const varies = (id) => new Set(found.members.map((each) => JSON.stringify(each.settings[id]))).size > 1;
    const recorded = ([id]) => found.members.some((each) => Number.isFinite(num(each[id]) ?? NaN));
    const against = names.includes(parameter) ? parameter : (names.find(varies) ?? names[0] ?? null);
    const judged = METRICS.find(([id]) => id === metric) ?? METRICS.find(recorded) ?? METRICS[0];
    const begun = found.members.filter((each) => each.key).length;
    said.textContent = `${plural(found.members.length, "run")}, ${begun} begun${found.cancelled ? ", cancelled" : ""}`;
    offer(
      choices.parameter,
      names.map((id) => [id, id]),
      against,
    );
    choices.metric.value = judged[0];
    const width = Math.min(WIDEST, plot.clientWidth || WIDEST);
    keepingFocus(main, () => {
      rows(names);
      plot.replaceChildren(scatter(found.members, against, judged, value, width));
      parallel.replaceChildren(coordinates(found.members, names, judged, value, parallel.clientWidth));
    });
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
            "data-part": `sort-${id}`,
            onclick: () => {
              sort = { id, down: sort.id === id && !sort.down };
              keepingFocus(main, () => rows(names));
            },
          },
          title,
        ),
      ),
    );
    const best = Math.min(...found.members.map((each) => num(each.validation_loss)).filter(Number.isFinite));
    table.replaceChildren(
      el(
        "table",
        {},
        el("caption", {}, "Runs, in what they differ and what came of it"),
        el("thead", {}, el("tr", {}, head)),
        el(
          "tbody",
          {},
          sorted().map((each) => row(each, names, best)),
        ),
      ),
    );
  }

  function sorted() {
    const by = (each) => (sort.id === "state" ? each.state : value(each, sort.id));
    return [...found.members].sort((a, b) => {
      const [p, q] = [by(a), by(b)];
      const [none, other] = [p, q].map((each) => each === null || each === undefined || Number.isNaN(each));
      if (none || other) return none - other; // what is not known stands last
      const numbers = typeof p === "number" && typeof q === "number";
      return (sort.down ? -1 : 1) * (numbers ? p - q : plain(p).localeCompare(plain(q)));
    });
  }

  function row(each, names, best) {
    const { key, number, settings } = each;
    const link = key && el("a", { href: `/run?${query({ run: key })}`, "data-part": `run-${number}` }, String(number));
    const loss = figure(each.validation_loss);
    return el(
      "tr",
      {},
      el(
        "th",
        { scope: "row", class: "pick" },
        key && chosen.box(key, `run ${number}`, `box-${number}`),
        link || String(number),
      ),
      el("td", {}, badge(each.state)),
      names.map((id) => el("td", { class: "number" }, plain(settings[id]))),
      el("td", { class: "number" }, num(each.validation_loss) === best ? el("b", {}, `${loss} lowest`) : loss),
      el("td", { class: "number" }, figure(each.loss)),
      el("td", { class: "number" }, each.tokens_per_s ? whole(each.tokens_per_s) : "–"),
      el("td", { class: "number" }, whole(each.step)),
    );
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
  let width = 0;
  new ResizeObserver(() => {
    if (found.members.length && plot.clientWidth !== width) draw();
    width = plot.clientWidth;
  }).observe(plot);
  setInterval(() => {
    if (document.visibilityState === "visible") load();
  }, 1000 * EVERY);
  document.getElementById("link").textContent = "";
}
