"use strict";
const rows = JSON.parse(document.getElementById("rows").textContent);
const panel = document.getElementById("panel");
const plots = [...document.querySelectorAll(".plotly-graph-div")];

// Show a row's samples and settings, and mark it wherever it appears.
function show(key, open) {
  const row = rows[key];
  if (!row) return;
  const grid = document.getElementById("panel-grid");
  const empty = document.getElementById("panel-empty");
  const facts = document.getElementById("panel-facts");
  document.getElementById("panel-title").textContent = row.title;
  panel.dataset.key = key;
  grid.hidden = !row.grid;
  empty.hidden = Boolean(row.grid);
  empty.textContent = "No sample grid was saved for this row.";
  if (row.grid) {
    grid.src = row.grid;
    grid.alt = "Samples of " + row.title;
  } else {
    grid.removeAttribute("src");
  }
  facts.replaceChildren(...row.facts.flatMap(([name, text]) => {
    const dt = document.createElement("dt");
    const dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = text;
    return [dt, dd];
  }));
  for (const tr of document.querySelectorAll("tr[data-key]")) {
    tr.classList.toggle("chosen", tr.dataset.key === key);
  }
  if (open) {
    panel.classList.add("open");
    for (const plot of plots.filter((p) => p.id.startsWith("parallel"))) {
      const chosen = plot.data.map((trace) => trace.meta === key);
      const any = chosen.includes(true);
      Plotly.restyle(plot, {
        "line.width": chosen.map((c) => (c ? 4 : 1.6)),
        opacity: chosen.map((c) => (c ? 1 : any ? 0.2 : 0.85)),
      });
    }
  }
}

function close() {
  panel.classList.remove("open");
}
document.getElementById("close").addEventListener("click", close);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") close();
});

for (const plot of plots) {
  plot.on("plotly_click", (event) => show(event.points[0].customdata, true));
}
for (const tr of document.querySelectorAll("tr[data-key]")) {
  tr.addEventListener("click", () => show(tr.dataset.key, true));
}
for (const button of document.querySelectorAll("button.open[data-key]")) {
  button.addEventListener("click", () => show(button.dataset.key, true));
}

// Sort by a column: numbers as numbers, empty cells last.
for (const header of document.querySelectorAll("thead th")) {
  header.firstElementChild.addEventListener("click", () => {
    const table = header.closest("table");
    const column = [...header.parentNode.children].indexOf(header);
    const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const value = (tr) => tr.children[column].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const difference = Number(x) - Number(y);
      return sign * (Number.isNaN(difference) ? x.localeCompare(y) : difference);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  });
}

// A hidden figure has no width: measure again when it comes into view.
function resize(parent) {
  for (const plot of parent.querySelectorAll(".plotly-graph-div")) {
    if (plot.offsetParent) Plotly.Plots.resize(plot);
  }
}
for (const select of document.querySelectorAll("select.view")) {
  select.addEventListener("change", () => {
    document.querySelectorAll("." + select.dataset.group).forEach((view, i) => {
      view.hidden = i !== Number(select.value);
      resize(view);
    });
  });
}
for (const details of document.querySelectorAll("details.protocol")) {
  details.addEventListener("toggle", () => resize(details));
}

// The figures take the page's colours.
function paint() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  for (const plot of plots) {
    const labels = (plot.layout.annotations || []).map((_, i) => `annotations[${i}].bgcolor`);
    Plotly.relayout(plot, {
      ...Object.fromEntries(labels.map((name) => [name, colour("--back") + "b0"])),
      "font.color": colour("--text"),
      "hoverlabel.bgcolor": colour("--card"),
      "hoverlabel.bordercolor": colour("--line"),
      "hoverlabel.font.color": colour("--text"),
    });
  }
}
if (plots.length) paint();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
show(panel.dataset.first, false);
