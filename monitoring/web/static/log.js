// A log: its end as it grows, what came before, and the lines that contain a text.

import { checkbox, el, field, select } from "./dom.js";
import { get } from "./data.js";
import { whole } from "./words.js";

const MOST = 3000; // lines on the page

export class Log {
  /** @param run its key; @param changed called when another log is to be followed. */
  constructor(run, changed) {
    this.run = run;
    this.changed = changed;
    this.attempts = [];
    this.attempt = null; // null: the newest
    this.rank = 0;
    this.job = false;
    this.begin = null; // bytes; of the first line shown
    this.searching = "";
    this.stick = true;
    this.lines = el("div", {
      class: "log",
      tabindex: 0,
      role: "region",
      "aria-label": "Log",
      onscroll: () => this.scrolled(),
    });
    this.older = el("button", { type: "button", onclick: () => this.more() }, "Earlier lines");
    this.said = el("p", { class: "quiet", role: "status" });
    this.which = el("span", { class: "field" });
    this.ranks = el("input", {
      type: "number",
      min: 0,
      value: 0,
      onchange: () => {
        this.rank = Math.max(0, Number(this.ranks.value) || 0);
        this.switch();
      },
    });
    this.search = el("input", { type: "search", placeholder: "text, then Enter" });
    const form = el(
      "form",
      {
        role: "search",
        class: "tools",
        onsubmit: (event) => {
          event.preventDefault();
          this.look();
        },
      },
      this.which,
      field("Rank", this.ranks),
      field("Find", this.search),
      el("button", { type: "submit" }, "Find"),
      checkbox("Long lines wrap", true, (on) => this.lines.classList.toggle("unwrapped", !on)),
    );
    this.node = el("div", {}, form, this.said, this.older, this.lines);
    this.choices("");
  }

  /** What the stream is to follow; nothing while matches are shown. */
  get name() {
    if (this.searching) return null;
    return this.job || this.newest === null ? "job" : `${this.attempt ?? this.newest}/${this.rank}`;
  }

  get newest() {
    return this.attempts.at(-1)?.number ?? null;
  }

  /** The attempts that there are; true if another log is to be followed now. */
  know(attempts) {
    const before = this.name;
    this.attempts = attempts;
    const known = attempts.map((each) => each.number).join();
    this.choices(known);
    return before !== this.name;
  }

  choices(known) {
    if (this.known === known) return;
    this.known = known;
    const options = [
      ["newest", "newest attempt"],
      ...this.attempts.map((each) => [String(each.number), `attempt ${each.number}`]).reverse(),
      ["job", "supervisor (job.log)"],
    ];
    const chosen = this.job ? "job" : this.attempt === null ? "newest" : String(this.attempt);
    this.which.replaceChildren(
      field(
        "Log",
        select(options, chosen, (value) => {
          this.job = value === "job";
          this.attempt = value === "job" || value === "newest" ? null : Number(value);
          this.ranks.disabled = this.job;
          this.switch();
        }),
      ),
    );
  }

  switch() {
    this.searching = "";
    this.search.value = "";
    this.lines.replaceChildren();
    this.changed();
  }

  /** What the stream says. */
  take(part) {
    if (part.trouble) {
      this.said.textContent = `the log cannot be read: ${part.trouble}`;
      return;
    }
    if (this.searching) return;
    if (part.anew) {
      this.lines.replaceChildren();
      this.begin = part.begin;
    }
    this.lines.append(...part.lines.map(line));
    // Who scrolled up reads there: nothing is taken away above it.
    while (this.stick && this.lines.childElementCount > MOST) {
      this.lines.firstChild.remove();
      this.begin = Number(this.lines.firstChild.dataset.at);
    }
    this.older.hidden = !this.begin;
    this.said.textContent = part.size ? `${whole(part.size)} bytes` : "nothing was printed yet";
    if (this.stick) this.lines.scrollTop = this.lines.scrollHeight;
  }

  scrolled() {
    this.stick = this.lines.scrollHeight - this.lines.scrollTop - this.lines.clientHeight < 40;
  }

  async look() {
    const followed = this.name;
    this.searching = this.search.value;
    if (!this.searching) return this.switch();
    this.looked = followed ?? this.looked;
    this.begin = null;
    this.lines.replaceChildren();
    await this.more();
    this.changed();
  }

  async more() {
    const log = this.searching ? this.looked : this.name;
    this.older.disabled = true;
    try {
      const part = await get("/api/log", { run: this.run, log, before: this.begin, search: this.searching || null });
      const height = this.lines.scrollHeight;
      this.lines.prepend(...part.lines.map(line));
      this.lines.scrollTop += this.lines.scrollHeight - height;
      this.begin = part.begin;
      this.older.hidden = !this.begin;
      if (this.searching) {
        const found = this.lines.childElementCount;
        this.said.textContent =
          `${found} line${found === 1 ? "" : "s"} with “${this.searching}”` +
          (this.begin ? "; earlier ones were not looked at yet" : " in the whole log");
      }
    } catch (error) {
      this.said.textContent = error.message;
    }
    this.older.disabled = false;
  }
}

const line = (each) => el("div", { "data-at": each.at }, each.text);
