import { el, field, select, table, wide } from "./dom.js";
import { get } from "./data.js";
import { Heat } from "./heat.js";
import { lazy } from "./lazy.js";
import { figure, median, num, plural, whole } from "./words.js";

/** The load of each expert of a layer. */
export function experts(run) {
  let found = null,
    layer = null,
    layers = [];
  const heat = new Heat("Tokens of each expert over the fair share", {
    colours: ["--cool", "--middle", "--hot"],
    ends: ["nothing", "twice the fair share"],
    share: (row, column) => {
      const value = num(found.share[row][column]);
      return value === null || !Number.isFinite(value) ? null : value / 2;
    },
    say: (row, column) =>
      `expert ${row}, from step ${whole(found.steps[column])}: ${figure(found.share[row][column])} of the fair share`,
  });
  const tools = el("div", { class: "tools" }),
    beside = el("div", { class: "beside" });
  heat.node.hidden = true;
  const node = el("div", {}, tools, heat.node, beside);
  const load = lazy(node, async () => {
    if (layer === null) return "This model has no experts, or nothing was recorded of them yet.";
    found = await get("/api/experts", { run, layer });
    heat.node.hidden = !found.steps.length;
    if (!found.steps.length) return "Nothing was recorded of this layer.";
    heat.show(
      found.share.length,
      found.steps.length,
      `step ${whole(found.steps[0])}`,
      `step ${whole(found.steps.at(-1))}`,
    );
    const rows = found.share.map((shares, expert) => ({
      expert,
      now: num(shares.at(-1)),
      recent: median(shares.slice(-20).map(num)),
    }));
    rows.sort((a, b) => (a.recent ?? 0) - (b.recent ?? 0));
    const shown = rows.length > 16 ? [...rows.slice(0, 8), ...rows.slice(-8)] : rows;
    beside.replaceChildren(
      wide(
        "Experts",
        table(
          `Experts of layer ${layer}, the least loaded of late first`,
          [
            { title: "Expert", cell: (each) => String(each.expert) },
            { title: "Newest", number: true, cell: (each) => figure(each.now) },
            { title: "Of late", number: true, cell: (each) => figure(each.recent) },
            {
              title: "",
              cell: (each) =>
                each.recent === null
                  ? ""
                  : each.recent <= 0.01
                    ? "gets nothing"
                    : each.recent < 0.2
                      ? "starved"
                      : each.recent > 2
                        ? "overloaded"
                        : "even enough",
            },
          ],
          shown,
        ),
      ),
    );
    const [entropy, dropped] = [num(found.entropy.at(-1)), num(found.dropped.at(-1))];
    return [
      `${plural(rows.length, "expert")}, each row one; 1 is the fair share`,
      Number.isFinite(entropy ?? NaN) && `entropy of the router ${figure(entropy)}`,
      dropped > 0 && `${whole(dropped)} rows dropped`,
    ]
      .filter(Boolean)
      .join("; ");
  });
  return {
    node,
    offer(given) {
      if (given.join() === layers.join()) return;
      layers = given;
      layer = layers.includes(layer) ? layer : (layers[0] ?? null);
      tools.replaceChildren(
        ...(layers.length
          ? [
              field(
                "Layer",
                select(
                  layers.map((each) => [String(each), `layer ${each}`]),
                  String(layer),
                  (value) => {
                    layer = Number(value);
                    load();
                  },
                ),
              ),
            ]
          : []),
      );
      load();
    },
  };
}
