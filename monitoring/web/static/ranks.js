import { el, field, select, table, wide } from "./dom.js";
import { get } from "./data.js";
import { Heat } from "./heat.js";
import { lazy } from "./lazy.js";
import { figure, num, plural, whole } from "./words.js";

const LATE = 0.15; // of a step by which a rank is later than the median one and called slow
// All ranks of a synchronous training take the same time for a step: who is slow shows in what it does alone.
const PARTS = [
  ["step_s", "Whole step"],
  ["data_s", "Reads data"],
  ["forward_s", "Forward"],
  ["backward_s", "Backward"],
  ["communication_s", "Communicates"],
  ["optimizer_s", "Updates"],
];

/** Step times of all ranks beside each other. */
export function ranks(run) {
  let found = null,
    chosen = null;
  const heat = new Heat("Seconds of a step by rank", {
    colours: ["--cool", "--middle", "--hot"],
    ends: ["half a step earlier than the median rank", "half a step later"],
    share: (row, column) => {
      const late = num(found.late[row][column]);
      return late === null || !Number.isFinite(late) ? null : late - 0.5;
    },
    say: (row, column) => {
      const late = num(found.late[row][column]);
      return (
        `${name(row)}, from step ${whole(found.steps[column])}: ` +
        (late === null || !Number.isFinite(late)
          ? "nothing recorded"
          : `${figure(found.seconds[row][column])} s, ${lateness(late)}`)
      );
    },
  });
  const lateness = (late) =>
    found.part === "step_s"
      ? `${late.toFixed(2)} times the median`
      : `${Math.abs(late - 1).toFixed(2)} of a step ${late < 1 ? "less" : "more"} than the median rank`;
  const name = (row) => `rank ${found.ranks[row]}${found.nodes[row] ? ` on ${found.nodes[row]}` : ""}`;
  const tools = el("div", { class: "tools" }),
    beside = el("div", { class: "beside" });
  heat.node.hidden = true;
  const node = el("div", {}, tools, heat.node, beside);
  const offer = (told, shown) => {
    const parts = PARTS.filter(([id]) => told.includes(id));
    const choose = (part) => {
      chosen = part;
      load();
    };
    if (!tools.children.length && parts.length > 1) tools.append(field("Part of a step", select(parts, shown, choose)));
  };
  const load = lazy(node, async () => {
    const [times, newest] = await Promise.all([
      get("/api/ranks", chosen ? { run, part: chosen } : { run }),
      get("/api/devices", { run }),
    ]);
    found = times;
    offer(found.parts, found.part);
    const alone = new Map(newest.ranks.map((each) => [each.rank, each]));
    const parts = PARTS.slice(1).filter(([id]) => newest.ranks.some((each) => each[id] !== undefined));
    const columns = found.steps.length;
    heat.node.hidden = !columns;
    beside.hidden = !columns;
    if (!columns) return "No rank has told how long its steps take.";
    heat.show(found.ranks.length, columns, `step ${whole(found.steps[0])}`, `step ${whole(found.steps.at(-1))}`);
    const rows = found.ranks
      .map((rank, row) => {
        const [seconds, late] = [found.recent[row].seconds, found.recent[row].late].map(num);
        return { rank, node: found.nodes[row], seconds, late: Number.isFinite(late) ? late : null };
      })
      .sort((a, b) => (b.late ?? 0) - (a.late ?? 0));
    const slow = rows.filter((each) => each.late > 1 + LATE).length;
    const part = PARTS.find(([id]) => id === found.part)[1];
    beside.replaceChildren(
      wide(
        "Ranks",
        table(
          "Ranks, the slowest of late first",
          [
            { title: "Rank", cell: (each) => String(each.rank) },
            { title: "Node", cell: (each) => each.node || null },
            {
              title: `${part}, of late`,
              number: true,
              cell: (each) => (each.seconds === null ? null : `${figure(each.seconds)} s`),
            },
            {
              title: found.part === "step_s" ? "Times the median" : "1 + steps over the median",
              number: true,
              cell: (each) =>
                each.late === null
                  ? null
                  : el(
                      each.late > 1 + LATE ? "b" : "span",
                      { class: each.late > 1 + LATE && "bad" },
                      each.late.toFixed(2) + (each.late > 1 + LATE ? " slow" : ""),
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
      `${plural(rows.length, "rank")}; ${slow ? `${plural(slow, "rank")} of late later than the median rank by more than ${LATE} of a step` : "steps take as long on all, as they wait for each other; who is waited for shows in what a rank does alone"}` +
      (rows.length > 32 ? ". The table has the slowest 32." : "")
    );
  });
  return { node };
}
