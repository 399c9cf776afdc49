// Runs that are ticked to be compared, and the link that does it.

import { el } from "./dom.js";
import { query } from "./data.js";

export const MOST = 12; // runs that the server compares

export class Choice {
  constructor() {
    this.runs = new Set();
    this.node = el("a", { class: "button", "aria-disabled": "true" }, "Compare");
  }

  /** A box that ticks a run. */
  box(run, label, part) {
    const node = el("input", {
      type: "checkbox",
      "data-part": part,
      "aria-label": `compare ${label}`,
      onchange: () => this.choose(run, node.checked),
    });
    node.checked = this.runs.has(run);
    return node;
  }

  choose(run, on) {
    if (on) this.runs.add(run);
    else this.runs.delete(run);
    const count = this.runs.size;
    const many = count > MOST ? `Compare: ${MOST} at most, ${count} are ticked` : `Compare ${count}`;
    this.node.textContent = count ? many : "Compare";
    if (count > 1 && count <= MOST) {
      this.node.setAttribute("href", `/compare?${query({ run: [...this.runs] })}`);
      this.node.removeAttribute("aria-disabled");
    } else {
      this.node.removeAttribute("href");
      this.node.setAttribute("aria-disabled", "true");
    }
  }
}
