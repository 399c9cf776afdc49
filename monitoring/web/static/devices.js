import { el, field, select, table, wide } from "./dom.js";
import { get, now } from "./data.js";
import { Heat } from "./heat.js";
import { lazy } from "./lazy.js";
import { ago, figure, num, plural, spaced } from "./words.js";

const HIDDEN = ["rank", "node", "t", "step", "host", "local_rank"];
const TOO_LITTLE = ["gpu_util", "power_w", "clock_mhz"]; // of which too little is what should be seen
const ROWS = 32; // of a table of what stands out

/** What each rank's GPU, process and node did over the time of the run, and what they last told. */
export function devices(run) {
  const tools = el("div", { class: "tools" }),
    beside = el("div", { class: "beside" }),
    newest = el("div"),
    over = overTime();
  const node = el("div", {}, tools, over.heat.node, beside, newest);
  let chosen = "",
    offered = "";
  const offer = (metrics, shown) => {
    const ids = metrics.map(({ id }) => id).join();
    if (ids === offered) return;
    offered = ids;
    const choose = (metric) => {
      chosen = metric;
      load();
    };
    const options = metrics.map(({ id, name }) => [id, title(name)]);
    tools.replaceChildren(...(options.length ? [field("Metric", select(options, shown, choose))] : []));
  };
  const load = lazy(node, async () => {
    const told = await get("/api/devices", { run });
    const shown = last(told.ranks);
    newest.replaceChildren(...(shown ? [shown] : []));
    const found = await get("/api/devices", { run, metric: chosen }); // of a long run that takes a while
    offer(found.metrics, found.metric);
    beside.replaceChildren(...over.show(found));
    return shown || found.metrics.length ? plural(told.ranks.length, "rank") : "Nothing was recorded of the devices.";
  });
  return { node };
}

/** The map of one metric, and what stands out in it as a table. */
function overTime() {
  let found = null;
  const heat = new Heat("", {
    colours: ["--cool", "--hot"],
    ends: ["", ""],
    share: (row, column) => {
      const value = finite(found.values[row][column]);
      return value === null ? null : (value - found.span[0]) / (found.span[1] - found.span[0] || 1);
    },
    say: (row, column) =>
      `rank ${found.ranks[row]}${found.nodes[row] ? ` on ${found.nodes[row]}` : ""}, ` +
      `from ${since(found.times[column], found.end)}: ${value(found.values[row][column]) ?? "nothing recorded"}`,
  });
  heat.node.hidden = true;
  const shown = () => found.metrics.find(({ id }) => id === found.metric);
  const value = (given) => {
    const known = finite(given);
    if (known === null) return null;
    return shown().unit === "%" ? `${Math.round(100 * known)} %` : `${figure(known)} ${shown().unit}`.trimEnd();
  };
  const show = (given) => {
    const other = found?.metric !== given.metric;
    found = given;
    heat.node.hidden = !found.times.length || !shown();
    if (heat.node.hidden) return [];
    const few = TOO_LITTLE.includes(found.metric),
      kind = found.highest ? "highest" : "mean";
    if (other) {
      const label = `${kind} ${shown().name} by rank over time`;
      heat.become(label, few ? ["--hot", "--cool"] : ["--cool", "--hot"], ["", ""]);
    }
    [heat.low.textContent, heat.high.textContent] = found.span.map(value);
    heat.show(found.ranks.length, found.times.length, since(found.times[0], found.end), since(found.end, found.end));
    const rows = found.ranks.map((rank, row) => ({
      rank,
      node: found.nodes[row],
      newest: found.newest[row],
      average: found.average[row],
      peak: found.peak[row],
    }));
    const key = few ? (row) => finite(row.average) ?? Infinity : (row) => -(finite(row.peak) ?? -Infinity);
    rows.sort((a, b) => key(a) - key(b) || a.rank - b.rank);
    const caption =
      `${title(shown().name)} of each rank since the first attempt began, ` +
      `the ${few ? "least" : "highest"} first${rows.length > ROWS ? `, ${ROWS} of ${rows.length}` : ""}`;
    return [wide("Devices over time", table(caption, columns(value), rows.slice(0, ROWS)))];
  };
  return { heat, show };
}

const columns = (value) => [
  { title: "Rank", cell: (row) => String(row.rank) },
  { title: "Node", cell: (row) => row.node || null },
  { title: "Newest", number: true, cell: (row) => value(row.newest) },
  { title: "Mean", number: true, cell: (row) => value(row.average) },
  { title: "Highest", number: true, cell: (row) => value(row.peak) },
];

/** A table of what each rank last told; null where none told anything. */
function last(ranks) {
  const named = (rank) =>
    Object.keys(rank).filter(
      (name) =>
        /memory|gpu|util|power|temp|clock|ecc|xid|cpu|energy|rss|throttle|_gib$/i.test(name) && !HIDDEN.includes(name),
    );
  const names = [...new Set(ranks.flatMap(named))];
  if (!names.length) return null;
  return wide(
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
  );
}

const title = (name) => name[0].toUpperCase() + name.slice(1);

function finite(given) {
  const value = num(given);
  return value !== null && Number.isFinite(value) ? value : null;
}

/** A moment of an axis that ends so many seconds after the first attempt began. */
const since = (seconds, end) =>
  end >= 3 * 3600 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 60)} min`;
