import { el, table, wide } from "./dom.js";
import { get, now } from "./data.js";
import { lazy } from "./lazy.js";
import { ago, figure, num, plural, spaced } from "./words.js";

const HIDDEN = ["rank", "node", "t", "step", "host", "local_rank"];

/** What each rank last told of its GPU, its process and its node. */
export function devices(run) {
  const node = el("div"),
    beside = el("div");
  node.append(beside);
  lazy(node, async () => {
    const { ranks } = await get("/api/devices", { run });
    const named = (rank) =>
      Object.keys(rank).filter(
        (name) =>
          /memory|gpu|util|power|temp|clock|ecc|xid|cpu|energy|rss|throttle|_gib$/i.test(name) &&
          !HIDDEN.includes(name),
      );
    const names = [...new Set(ranks.flatMap(named))];
    if (!names.length) {
      beside.replaceChildren();
      return "Nothing was recorded of the devices.";
    }
    beside.replaceChildren(
      wide(
        "Devices",
        table(
          "Newest of each rank of the newest attempt",
          [
            { title: "Rank", cell: (each) => String(each.rank) },
            { title: "Node", cell: (each) => each.node || null },
            { title: "Told", number: true, cell: (each) => (each.t ? ago(now() - each.t) : null) },
            ...names.map((name) => ({
              title: spaced(name),
              number: true,
              cell: (each) =>
                typeof each[name] === "number" || num(each[name]) !== null
                  ? figure(each[name])
                  : each[name] === undefined
                    ? null
                    : String(each[name]),
            })),
          ],
          ranks,
        ),
      ),
    );
    return plural(ranks.length, "rank");
  });
  return { node };
}
