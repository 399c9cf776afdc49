import { el, table, wide } from "./dom.js";
import { get } from "./data.js";
import { Heat } from "./heat.js";
import { lazy } from "./lazy.js";
import { figure, median, num, plural, whole } from "./words.js";

const SLOW = 1.15; // times the median of all ranks from which a rank is called slow
// All ranks of a synchronous training take the same time for a step: who is slow shows in what it does alone.
const PARTS = [
  ["data_s", "Reads data"],
  ["forward_s", "Forward"],
  ["backward_s", "Backward"],
  ["communication_s", "Communicates"],
  ["optimizer_s", "Updates"],
];

/** Step times of all ranks beside each other. */
export function ranks(run) {
  let found = null,
    medians = [];
  const ratio = (row, column) => {
    const value = num(found.seconds[row][column]);
    return value === null || !Number.isFinite(value) || !medians[column] ? null : value / medians[column];
  };
  const heat = new Heat("Seconds of a step by rank", {
    colours: ["--cool", "--middle", "--hot"],
    ends: ["faster than the others", "1.5 times as long"],
    share: (row, column) => {
      const at = ratio(row, column);
      return at === null ? null : at - 0.5;
    },
    say: (row, column) => {
      const at = ratio(row, column);
      return (
        `${name(row)}, from step ${whole(found.steps[column])}: ` +
        (at === null
          ? "nothing recorded"
          : `${figure(found.seconds[row][column])} s, ${at.toFixed(2)} times the median`)
      );
    },
  });
  const name = (row) => `rank ${found.ranks[row]}${found.nodes[row] ? ` on ${found.nodes[row]}` : ""}`;
  const beside = el("div", { class: "beside" });
  heat.node.hidden = true;
  const node = el("div", {}, heat.node, beside);
  lazy(node, async () => {
    const [times, newest] = await Promise.all([get("/api/ranks", { run }), get("/api/devices", { run })]);
    found = times;
    const alone = new Map(newest.ranks.map((each) => [each.rank, each]));
    const parts = PARTS.filter(([id]) => newest.ranks.some((each) => each[id] !== undefined));
    const columns = found.steps.length;
    heat.node.hidden = !columns;
    beside.hidden = !columns;
    if (!columns) return "No rank has told how long its steps take.";
    medians = found.steps.map((_, column) => median(found.seconds.map((row) => num(row[column]))));
    heat.show(found.ranks.length, columns, `step ${whole(found.steps[0])}`, `step ${whole(found.steps.at(-1))}`);
    const rows = found.ranks
      .map((rank, row) => {
        const recent = found.seconds[row].slice(-20).map(num);
        const ratios = recent.map((_, i) => ratio(row, columns - recent.length + i));
        return { rank, node: found.nodes[row], seconds: median(recent), ratio: median(ratios) };
      })
      .sort((a, b) => (b.ratio ?? 0) - (a.ratio ?? 0));
    const slow = rows.filter((each) => each.ratio > SLOW).length;
    beside.replaceChildren(
      wide(
        "Ranks",
        table(
          "Ranks, the slowest of late first",
          [
            { title: "Rank", cell: (each) => String(each.rank) },
            { title: "Node", cell: (each) => each.node || null },
            {
              title: "Step takes",
              number: true,
              cell: (each) => (each.seconds === null ? null : `${figure(each.seconds)} s`),
            },
            {
              title: "Times the median",
              number: true,
              cell: (each) =>
                each.ratio === null
                  ? null
                  : el(
                      each.ratio > SLOW ? "b" : "span",
                      { class: each.ratio > SLOW && "bad" },
                      each.ratio.toFixed(2) + (each.ratio > SLOW ? " slow" : ""),
                    ),
            },
            ...parts.map(([id, title]) => ({
              title,
              number: true,
              cell: (each) => {
                const value = alone.get(each.rank)?.[id];
                return value === undefined ? null : `${figure(value)} s`;
              },
            })),
          ],
          rows.slice(0, 32),
        ),
      ),
    );
    return (
      `${plural(rows.length, "rank")}; ${slow ? `${plural(slow, "rank")} slower than ${SLOW} times the median of late` : "steps take as long on all, as they wait for each other; who is waited for shows in what a rank does alone"}` +
      (rows.length > 32 ? ". The table has the slowest 32." : "")
    );
  });
  return { node };
}
