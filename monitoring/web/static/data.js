// What the server says: questions with one answer, and one stream a page with what changed.

const link = () => document.getElementById("link");

function tell(text, kind) {
  if (link().textContent !== text) link().textContent = text;
  link().className = kind;
}

export function query(values) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined) found.append(name, each);
    }
  }
  return found;
}

/** The answer as a value; an error has the server's words. */
export async function get(path, values = {}, options = {}) {
  const answer = await fetch(`${path}?${query(values)}`, options);
  if (!answer.ok) throw new Error((await answer.text()).trim() || `the server says ${answer.status}`);
  return answer.json();
}

export async function post(path, value) {
  const answer = await fetch(path, {
    method: "POST",
    body: JSON.stringify(value),
    headers: { "content-type": "application/json" },
  });
  if (!answer.ok) throw new Error((await answer.text()).trim());
}

const WHY = {
  401: "this server does not know you: open the address that hpc serve printed",
  404: "there is no such run or sweep",
  410: "the run's folder is gone",
};

let offset = 0; // of the server's clock, seconds
export const now = () => Date.now() / 1000 + offset;

/**
 * Follow a page's stream. A page that nobody sees has none: browsers allow few for one server, and the server rests.
 * values() gives its parameters; on.set(name, value), on.gone(name), on.log(part), on.done() after each message.
 */
export function follow(values, on) {
  let source = null;
  const open = () => {
    source?.close();
    source = new EventSource(`/events?${query(values())}`);
    let first = true;
    source.addEventListener("state", (event) => {
      const message = JSON.parse(event.data);
      offset = message.now - Date.now() / 1000;
      if (first) on.begin?.();
      first = false;
      for (const [name, value] of Object.entries(message.set)) on.set(name, value);
      for (const name of message.gone) on.gone?.(name);
      on.done?.();
      tell("live", "live");
    });
    source.addEventListener("log", (event) => on.log?.(JSON.parse(event.data)));
    source.addEventListener("open", () => tell("live", "live"));
    source.addEventListener("error", () => {
      // A stream that the server refuses is closed for good, and does not say why.
      if (source.readyState === EventSource.CLOSED) {
        fetch(`/events?${query(values())}`, { method: "HEAD" }).then(
          (answer) => tell(WHY[answer.status] ?? "the server refuses", "lost"),
          () => tell("the server does not answer", "lost"),
        );
        setTimeout(
          () => document.visibilityState === "visible" && source?.readyState === EventSource.CLOSED && open(),
          5000,
        );
      } else tell("the server does not answer; trying again", "lost");
    });
  };
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") {
      source?.close();
      source = null;
      tell("paused while not seen", "lost");
    } else if (!source) open();
  });
  open();
  return open;
}
