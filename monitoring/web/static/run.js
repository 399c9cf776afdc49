// The page of one run: what its stream says goes to the parts of the page.

import { badge, crumbs, el, put, section, table, wide } from "./dom.js";
import { follow, now, post, query } from "./data.js";
import { devices } from "./devices.js";
import { experts } from "./experts.js";
import { stepped } from "./lazy.js";
import { Log } from "./log.js";
import { Metrics } from "./metrics.js";
import { bar } from "./overview.js";
import { ranks } from "./ranks.js";
import { request } from "./request.js";
import { attempts, goodput } from "./timeline.js";
import { ago, clock, count, duration, figure, num, number, percent, plural, spaced, whole } from "./words.js";

const SECTIONS = [
  ["curves", "Curves"],
  ["time", "Time"],
  ["ranks", "Ranks"],
  ["experts", "Experts"],
  ["devices", "Devices"],
  ["logs", "Logs"],
  ["request", "Configuration"],
];
const OLD = 60; // seconds after which the last step is worth a word

export function show(main, given) {
  const key = given.get("run") ?? "";
  crumbs([key]);
  document.title = key;
  const known = {};
  const parts = {
    head: el("div", { class: "head" }, el("h1", {}, key)),
    progress: el("div"),
    findings: el("div"),
    end: el("div"),
  };
  const nav = el(
    "nav",
    { class: "sections", "aria-label": "Parts of this page" },
    SECTIONS.map(([id, title]) => el("a", { href: `#${id}` }, title)),
  );
  const curves = new Metrics(key, given);
  const log = new Log(key, () => reopen());
  let tries = null;
  const time = el("div"),
    past = el("div"),
    others = el("div");
  const load = experts(key),
    asked = request(key);

  main.replaceChildren(
    parts.head,
    parts.progress,
    parts.findings,
    nav,
    section("curves", "Curves", curves.node),
    section("time", "Time", time, past),
    section("ranks", "Ranks", ranks(key).node),
    section("experts", "Experts", load.node),
    section("devices", "Devices", devices(key).node),
    section("logs", "Logs", log.node),
    section("request", "Configuration", asked.node),
    parts.end,
    others,
  );
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();

  const reopen = follow(() => ({ run: key, log: log.name }), {
    set(name, value) {
      known[name] = value;
      if (name === "head") head(parts.head, value);
      else if (name === "progress") {
        progress(parts.progress, known);
        stepped(value.step);
        curves.grown(value.step);
      } else if (name === "findings") findings(parts.findings, value, key);
      else if (name === "goodput") time.replaceChildren(...goodput(value));
      else if (name === "attempts") {
        past.replaceChildren(attempts(value, now()));
        if (value.length !== tries) asked.load(); // whoever resumed it may have changed it
        tries = value.length;
        if (log.know(value)) queueMicrotask(reopen);
      } else if (name === "names") curves.offer(value);
      else if (name === "layers") load.offer(value);
      else if (name === "metrics") latest(others, value);
      else if (name === "end") end(parts.end, value);
      else if (name === "problems") problems(parts.findings, value);
      else if (name === "gone") gone(parts.head);
      else if (name === "trouble") problems(parts.findings, [`the run cannot be read: ${value}`]);
    },
    gone(name) {
      delete known[name];
      if (name === "gone") parts.head.querySelector(".notice")?.remove();
      else if (name === "trouble") problems(parts.findings, known.problems ?? []);
    },
    log: (part) => log.take(part),
    done() {
      if (!known.gone) progress(parts.progress, known);
    },
  });
  setInterval(() => {
    if (document.visibilityState === "visible" && known.progress) progress(parts.progress, known);
  }, 5000);
}

function gone(node) {
  node.querySelector(".notice")?.remove();
  node.append(
    el(
      "p",
      { class: "notice critical", role: "alert" },
      "The run's folder is gone: removed, moved or out of reach. What was read of it before stays here; should it come back, this page goes on.",
    ),
  );
}

function head(node, found) {
  const job = found.job;
  const facts = [];
  if (job) {
    if (job.state === "PENDING")
      facts.push(
        `job ${job.job_id} waits (${job.reason || "no reason given"})` +
          (job.started ? `, expected ${clock(job.started)}` : ""),
      );
    else facts.push(`job ${job.job_id}` + (job.nodes ? ` on ${job.nodes}` : ""));
    if (job.ends && job.ends > now()) facts.push(`time limit in ${duration(job.ends - now())}`);
    if (job.seen && now() - job.seen > 30) facts.push(`Slurm was last heard ${duration(now() - job.seen)} ago`);
  } else if (found.job_id) facts.push(`job ${found.job_id}`);
  put(
    node,
    el("h1", {}, found.key.slice(0, found.key.lastIndexOf("/") + 1), el("span", { class: "id" }, found.id)),
    el(
      "p",
      { class: "states" },
      badge(found.state),
      found.emulated ? el("span", { class: "badge emulated" }, "EMULATED") : null,
      el("span", {}, found.cluster),
      el("span", { class: "quiet" }, facts.join(", ")),
      found.sweep ? el("a", { href: `/sweep?${query({ sweep: found.sweep })}` }, "its sweep") : null,
    ),
    found.reason ? el("p", { class: "reason whole" }, found.reason) : null,
    found.tags.length || found.note
      ? el(
          "p",
          { class: "tags" },
          found.tags.map((tag) => el("span", { class: "tag" }, `#${tag}`)),
          found.note,
        )
      : null,
  );
}

function progress(node, { progress: found, goodput: time, head: said }) {
  if (!found) return;
  const loss = num(found.loss);
  const age = found.updated ? now() - found.updated : null;
  const left = found.left;
  const tiles = [
    ["Step", whole(found.step), found.target_steps ? `of ${whole(found.target_steps)}` : ""],
    ["Tokens", count(found.tokens), found.target_tokens ? `of ${count(found.target_tokens)}` : ""],
    [
      "Loss",
      figure(found.loss),
      found.loss_min === null ? "" : `lowest ${figure(found.loss_min)}`,
      loss !== null && !Number.isFinite(loss),
    ],
    ["Tokens/s", count(found.tokens_per_s), "median of recent steps"],
    said?.done
      ? ["Goodput", percent(time?.ettr), "of the wall clock"]
      : [
          "ETA",
          duration(found.eta_s),
          left ? `with interruptions ${duration(left[0])} to ${duration(left[2])}` : "of training",
        ],
    said?.done
      ? ["Lost", whole(found.lost_steps), "steps done again"]
      : ["Goodput", percent(time?.ettr), found.lost_steps ? plural(found.lost_steps, "lost step") : "no step lost"],
  ];
  if (!said?.done && age !== null)
    tiles.push(["Last step", ago(age), age > OLD ? "longer than a minute" : "", age > OLD]);
  fill(
    node,
    el("div", { class: "wide-meter" }, bar(found)),
    el(
      "dl",
      { class: "tiles" },
      tiles.map(([name, value, words, bad]) =>
        el(
          "div",
          {},
          el("dt", {}, name),
          el("dd", { class: bad && "bad" }, value),
          el("dd", { class: "quiet" }, words),
        ),
      ),
    ),
  );
}

/** Replace what is there only where it says something else: a screen reader and a selection are left in peace. */
function fill(node, ...children) {
  const fresh = el("div", {}, children);
  if (fresh.textContent !== node.textContent || !node.childElementCount) node.replaceChildren(...fresh.childNodes);
}

function findings(node, found, key) {
  const id = key.slice(key.lastIndexOf("/") + 1);
  const list = found.map((each) => {
    const { silenced, acknowledged } = each;
    const where = [each.node && `node ${each.node}`, each.rank !== null && `rank ${each.rank}`]
      .filter(Boolean)
      .join(", ");
    const button = (label, how, title) => {
      const node = el(
        "button",
        {
          type: "button",
          class: "small",
          title,
          "data-key": each.key,
          "data-how": how,
          "aria-label": `${label}: ${each.title}`,
          onclick: async () => {
            try {
              await post("/api/findings", { run: key, finding: each.key, how });
            } catch (error) {
              node.after(el("span", { class: "bad" }, ` ${error.message}`));
            }
          },
        },
        label,
      );
      return node;
    };
    return el(
      "li",
      { class: `finding ${each.severity} ${silenced ? "silenced" : ""}` },
      el(
        "p",
        { class: "title" },
        el("b", { class: "severity" }, each.severity),
        ` ${each.title}`,
        silenced ? el("span", { class: "quiet" }, acknowledged ? " (seen)" : " (silenced)") : null,
      ),
      el("p", {}, each.evidence),
      el(
        "p",
        { class: "quiet" },
        [`since ${clock(each.since)}`, where].filter(Boolean).join(", "),
        each.do ? [". To do: ", el("code", {}, each.do.replace(/\bRUN\b/g, id))] : null,
      ),
      silenced
        ? button("Say again", "speak", "Count it again, and tell of it")
        : [
            button("Silence", "silence", "Hear no more of it"),
            " ",
            button("Seen", "acknowledge", "Hear no more of it for a week, unless it gets worse"),
          ],
    );
  });
  const old = node.querySelector(".problems");
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset : {};
  node.replaceChildren(
    found.length ? section("findings", "Findings", el("ul", { class: "findings" }, list)) : "",
    old ?? "",
  );
  if (focused.key) {
    const of = `[data-key="${CSS.escape(focused.key)}"]`;
    (node.querySelector(`${of}[data-how="${focused.how}"]`) ?? node.querySelector(of))?.focus();
  }
}

function problems(node, found) {
  node.querySelector(".problems")?.remove();
  if (found.length)
    node.append(
      el(
        "ul",
        { class: "problems" },
        found.map((each) => el("li", {}, each)),
      ),
    );
}

function latest(node, found) {
  const rows = Object.entries(found);
  if (!rows.length) return node.replaceChildren();
  const open = node.querySelector("details")?.open;
  node.replaceChildren(
    el(
      "details",
      { open },
      el("summary", {}, `Newest values of all ${rows.length} metrics`),
      wide(
        "Newest values",
        table(
          "Newest value of each metric",
          [
            { title: "Metric", cell: ([name]) => name },
            { title: "Value", number: true, cell: ([, value]) => number(value) },
          ],
          rows,
        ),
      ),
    ),
  );
}

function end(node, { sample, summary }) {
  const rows = Object.entries(summary).filter(([name]) => name !== "finished");
  node.replaceChildren(
    ...(rows.length || sample
      ? [
          section(
            "summary",
            "At the end",
            el(
              "dl",
              { class: "facts" },
              rows.map(([name, value]) =>
                el(
                  "div",
                  {},
                  el("dt", {}, spaced(name)),
                  el("dd", {}, typeof value === "number" ? number(value) : String(value)),
                ),
              ),
            ),
            sample ? el("blockquote", {}, sample) : null,
          ),
        ]
      : []),
  );
}
