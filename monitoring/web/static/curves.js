// Curves as the server bins them; of one that is here already, only what is new at its end is asked for.

import { get } from "./data.js";
import { num } from "./words.js";

export class Loader {
  constructor() {
    this.had = new Map(); // run and metric -> {key, history, curve}
  }

  /** @returns {x, low, high, bad, ghosts}; ghosts are stretches that were lost and done again. */
  async load(run, metric, { axis, smoothing, range, most }) {
    const name = `${run}\n${metric}`,
      key = JSON.stringify([axis, smoothing, range, most]);
    const had = this.had.get(name);
    const asked = { run, metric, axis, most, smoothing: smoothing || null, low: range?.low, high: range?.high };
    if (had?.key === key && had.curve.x.length > 2) {
      const place = had.curve.x.length - 1;
      Object.assign(asked, { history: had.history, first: had.curve.x[0], since: had.curve.x[place], place });
    }
    const answer = await get("/api/curve", asked);
    const curve = joined(had?.curve, answer.curve);
    this.had.set(name, { key, history: answer.history, curve });
    return {
      ...curve,
      ghosts: answer.ghosts.map(({ attempt, curve: { x, high } }) => ({ attempt, x: x.map(num), y: high.map(num) })),
    };
  }
}

/** The beginning that one has, and what came behind it. */
function joined(before, { place, x, low, high, bad }) {
  const joint = (old, fresh) => [...old.slice(0, place), ...fresh.map(num)];
  const old = place ? before : { x: [], low: [], high: [], bad: [] };
  return {
    x: joint(old.x, x),
    low: joint(old.low, low),
    high: joint(old.high, high),
    bad: [...old.bad.filter((each) => each < place), ...bad],
  };
}
