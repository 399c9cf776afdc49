const pages = { "/": "./overview.js", "/run": "./run.js", "/compare": "./compare.js", "/sweep": "./sweep.js" };
const { show } = await import(pages[location.pathname]);
show(document.getElementById("main"), new URLSearchParams(location.search));
