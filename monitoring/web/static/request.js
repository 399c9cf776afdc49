import { el, field, put, table, wide } from "./dom.js";
import { get } from "./data.js";
import { plain } from "./parameters.js";
import { num, plural } from "./words.js";

const LONG = ["typed", "then"]; // texts that are commands

/** What was asked for and what it was made with: what was typed, code and versions, and every setting by its path. */
export function request(run) {
  let settings = [];
  const said = el("p", { class: "quiet", role: "status" }),
    facts = el("dl", { class: "facts" }),
    title = el("summary", {}, "All settings"),
    beside = el("div");
  const search = el("input", { type: "search", placeholder: "optim.lr", oninput: () => filter() });
  const all = el("details", { hidden: true }, title, el("div", { class: "tools" }, field("Filter", search)), beside);

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/);
    const matching = settings.filter((row) => words.every((word) => row.text.includes(word)));
    const columns = [
      { title: "Setting", cell: (row) => row.path },
      { title: "Value", cell: (row) => row.value },
    ];
    beside.replaceChildren(
      matching.length
        ? wide("Settings", table(`${matching.length} of ${plural(settings.length, "setting")}`, columns, matching))
        : el("p", { class: "quiet" }, "No setting is called or set so."),
    );
  }

  async function load() {
    try {
      const found = await get("/api/request", { run });
      said.textContent = "";
      settings = Object.entries(found.settings).map(([path, given]) => {
        const value = plain(typeof given === "string" ? (num(given) ?? given) : given);
        return { path, value, text: `${path}=${value}`.toLowerCase() };
      });
      put(
        facts,
        found.told.map(([label, text]) =>
          el("div", {}, el("dt", {}, label), el("dd", {}, LONG.includes(label) ? el("code", {}, text) : text)),
        ),
      );
      title.textContent = `All ${plural(settings.length, "setting")}`;
      all.hidden = false;
      filter();
    } catch (error) {
      said.textContent = error.message;
    }
  }
  return { node: el("div", {}, said, facts, all), load };
}
