// What a person who cannot see the page, or not well, needs of it: each check gives what is amiss, in words.
({
  /** All that can be reached or stands for a picture has a name; headings, tables and ids are in order. */
  names() {
    const found = [];
    const of = (node, attribute) => node.getAttribute(attribute) ?? "";
    const name = (node) =>
      [
        of(node, "aria-label"),
        node.textContent,
        node.title,
        ...of(node, "aria-labelledby")
          .split(" ")
          .map((id) => document.getElementById(id)?.textContent ?? ""),
        ...[...(node.labels ?? [])].map((label) => label.textContent),
      ]
        .join("")
        .trim();
    const named =
      "a[href], button, input, select, summary, [tabindex='0'], [role=img], progress, nav, main section, " +
      "canvas:not([aria-hidden], [role=img] *)";
    for (const node of document.querySelectorAll(named)) {
      if (!name(node) && !node.closest("[hidden]")) found.push(`no name: ${node.outerHTML.slice(0, 120)}`);
    }
    const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map((node) => Number(node.tagName[1]));
    levels.forEach((level, i) => {
      if (i ? level > levels[i - 1] + 1 : level !== 1) found.push(`heading ${i} is of level ${level}`);
    });
    for (const table of document.querySelectorAll("table")) {
      if (!table.caption?.textContent) found.push("a table without a caption");
      for (const cell of table.querySelectorAll("th")) if (!cell.scope) found.push(`no scope: ${cell.textContent}`);
      for (const row of table.tBodies[0].rows) {
        if (!row.querySelector("th[scope=row]")) found.push(`a row without a name: ${row.textContent}`);
      }
    }
    const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
    ids.filter((id, i) => ids.indexOf(id) !== i).forEach((id) => found.push(`id ${id} twice`));
    if (!document.documentElement.lang) found.push("no language");
    if (document.querySelectorAll("main").length !== 1) found.push("not one main");
    for (const canvas of document.querySelectorAll("figure canvas:not(.ramp)")) {
      const beside =
        canvas.closest("figure").querySelector("details.data") ?? canvas.closest("section").querySelector("table");
      if (canvas.offsetParent && !beside) found.push("a canvas without a table beside it");
    }
    return found;
  },

  /** Text stands out from its ground by 4.5 to 1, as WCAG 2 has it for AA. */
  contrast() {
    const parse = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
    const linear = (c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const under = (node) => {
      for (; node; node = node.parentElement) {
        const ground = parse(getComputedStyle(node).backgroundColor);
        if (ground.length === 3 || ground[3] > 0.9) return ground;
      }
      return [255, 255, 255];
    };
    const found = [];
    for (const node of document.querySelectorAll("main *, header *")) {
      const text = [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.textContent.trim());
      if (!text || !node.offsetParent || node.closest("svg, :disabled, [aria-disabled], .hidden")) continue;
      const [a, b] = [light(parse(getComputedStyle(node).color)), light(under(node))];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < 4.5) found.push(`${ratio.toFixed(2)}: ${node.outerHTML.slice(0, 100)}`);
    }
    return found;
  },

  /** A finger meets what is to be tapped. */
  small() {
    const tapped = "main button, main select, main a.button, main input";
    return [...document.querySelectorAll(tapped)]
      .filter((node) => node.offsetParent && node.type !== "range" && !node.matches(".sort"))
      .map((node) => [node.outerHTML.slice(0, 80), (node.closest("label") ?? node).getBoundingClientRect()])
      .filter(([, box]) => box.height < 21 || box.width < 21)
      .map(([text]) => text);
  },
});
