// Nodes from values. Text becomes text nodes and nothing else: no value is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** What a node holds from now on; null and false are nothing. */
export const put = (node, ...children) =>
  node.replaceChildren(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );

/** An element. Attributes that are null or false are left out; those that begin with "on" are listeners. */
export const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export const badge = (state) => el("span", { class: `badge ${known(state)}` }, state);
const STATES = ["running", "finished", "failed", "cancelled", "gone", "pending", "queued", "requeued"];
const known = (state) => (STATES.includes(state) ? state : "other");

/**
 * A table with a caption. Columns are {title, cell(row), number, label}; a cell gives a node or text, and the first one
 * names its row.
 */
export function table(caption, columns, rows, attributes = {}) {
  const heads = columns.map((each) => el("th", { scope: "col", class: each.number && "number" }, each.title));
  const line = (row) =>
    el(
      "tr",
      {},
      columns.map((each, place) =>
        el(
          place ? "td" : "th",
          { scope: place ? null : "row", class: each.number && "number", "data-label": each.title },
          each.cell(row) ?? "–",
        ),
      ),
    );
  return el(
    "table",
    attributes,
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, heads)),
    el("tbody", {}, rows.map(line)),
  );
}

/** What is wide scrolls by itself, also by keyboard, so that the page does not. */
export const wide = (label, ...children) =>
  el("div", { class: "wide", tabindex: 0, role: "group", "aria-label": label }, children);

let made = 0;
/** A labelled control; the label comes first. */
export function field(label, control) {
  control.id ||= `field-${++made}`;
  return el("span", { class: "field" }, el("label", { for: control.id }, label), control);
}

export function checkbox(label, checked, change) {
  const box = el("input", { type: "checkbox", onchange: () => change(box.checked) });
  box.checked = checked;
  return el("label", { class: "check" }, box, label);
}

export function select(options, chosen, change) {
  const node = el(
    "select",
    { onchange: () => change(node.value) },
    options.map(([value, text]) => el("option", { value }, text)),
  );
  node.value = chosen;
  return node;
}

/** Other options of a select; where they are the same it is left alone, as whoever is choosing from it. */
export function offer(node, options, chosen) {
  if (JSON.stringify([...node.options].map((each) => [each.value, each.text])) !== JSON.stringify(options))
    node.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  node.value = chosen;
}

/** Replace what is in a node, and leave the focus on the same part of it: "data-part" says which that is. */
export function keepingFocus(node, replace) {
  const part = node.contains(document.activeElement) ? document.activeElement.dataset.part : null;
  replace();
  if (part) node.querySelector(`[data-part="${CSS.escape(part)}"]`)?.focus({ preventScroll: true });
}

export function section(id, title, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), children);
}

export function crumbs(...links) {
  const list = document.getElementById("crumbs");
  list.replaceChildren(
    el("li", {}, el("a", { href: "/" }, "Runs")),
    ...links.map(([text, href]) =>
      el("li", {}, href ? el("a", { href }, text) : el("span", { "aria-current": "page" }, text)),
    ),
  );
}
