// Parts of a page that cost a look at many files: read only where somebody sees them.

import { el } from "./dom.js";

const AGAIN = 10; // seconds between two looks
let newest = null; // step that the stream told of

/** Say which step is the newest. */
export function stepped(step) {
  newest = step;
}

/** A part that is read when it comes into view, and then again every few seconds while it is and there are new steps. */
export function lazy(node, load) {
  let last = 0,
    busy = false,
    again = false, // asked for while busy: something else was chosen
    seen = false,
    at = NaN;
  const said = el("p", { class: "quiet", role: "status" });
  node.prepend(said);
  const call = async () => {
    again = busy;
    if (busy) return;
    busy = true;
    try {
      said.textContent = (await load()) ?? "";
    } catch (error) {
      said.textContent = error.message;
    }
    [last, at, busy] = [Date.now(), newest, false];
    if (again) call();
  };
  new IntersectionObserver(
    (entries) => {
      seen = entries.at(-1).isIntersecting;
      if (seen && at !== newest && Date.now() - last > 1000 * AGAIN) call();
    },
    { rootMargin: "200px" },
  ).observe(node);
  setInterval(() => {
    if (seen && at !== newest && document.visibilityState === "visible") call();
  }, 1000 * AGAIN);
  return call;
}
