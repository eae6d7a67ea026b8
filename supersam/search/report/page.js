"use strict";
// Charts from the JSON beside them, tables that sort, and rows and dots that point at each other.
const SVG = "http://www.w3.org/2000/svg";
const element = (name, attributes, parent) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (parent) parent.append(made);
  return made;
};
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(each => each >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(at);
  return found.map(at => [at, at.toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)))]);
}
function choose(row) {
  document.querySelectorAll(".chosen").forEach(each => each.classList.remove("chosen"));
  if (!row) return;
  document.querySelectorAll(`[data-row="${CSS.escape(row)}"]`).forEach(each => each.classList.add("chosen"));
  const line = document.getElementById(row);
  if (line) line.classList.add("chosen");
}
function draw(box, chart, hidden) {
  box.querySelectorAll("svg, .tip").forEach(each => each.remove());
  const width = Math.max(300, box.clientWidth), height = Math.min(460, Math.max(300, width * 0.6));
  const left = 58, right = 12, top = 8, bottom = 42;
  const shown = chart.series.filter((_, place) => !hidden.has(place));
  const points = shown.flatMap(series => series.points);
  if (points.length === 0) return;
  const range = (values, floor) => {
    const low = Math.min(...values), high = Math.max(...values), pad = (high - low || Math.abs(high) || 1) * 0.05;
    return [floor === undefined ? low - pad : Math.max(floor, low - pad), high + pad];
  };
  const xs = range(points.map(p => p.x)), ys = range(points.flatMap(p => [p.y, p.lo ?? p.y, p.hi ?? p.y]));
  const px = x => left + (x - xs[0]) / (xs[1] - xs[0]) * (width - left - right);
  const py = y => height - bottom - (y - ys[0]) / (ys[1] - ys[0]) * (height - top - bottom);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": chart.y + " against " + chart.x }, box);
  for (const [x, text] of ticks(...xs, width / 110)) {
    element("line", { class: "grid", x1: px(x), x2: px(x), y1: top, y2: height - bottom }, svg);
    element("text", { x: px(x), y: height - bottom + 16, "text-anchor": "middle" }, svg).textContent = text;
  }
  for (const [y, text] of ticks(...ys, height / 60)) {
    element("line", { class: "grid", x1: left, x2: width - right, y1: py(y), y2: py(y) }, svg);
    element("text", { x: left - 6, y: py(y) + 4, "text-anchor": "end" }, svg).textContent = text;
  }
  element("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, svg).textContent = chart.x;
  element("text", { x: 14, y: height / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${height / 2})` }, svg).textContent = chart.y;
  const tip = document.createElement("div");
  tip.className = "tip";
  box.append(tip);
  for (const series of shown) {
    const colour = `var(${series.colour})`;
    if (series.line) {
      const path = series.points.map(p => `${px(p.x)},${py(p.y)}`).join(" ");
      element("polyline", { points: path, fill: "none", style: `stroke:${colour}`, "stroke-width": 1.6, ...(series.dash ? { "stroke-dasharray": "5 4" } : {}) }, svg);
    }
    if (series.dots === false) continue;
    for (const p of series.points) {
      const group = element("g", p.row ? { "data-row": p.row } : {}, svg);
      if (p.lo !== undefined) element("line", { class: "bar", x1: px(p.x), x2: px(p.x), y1: py(p.lo), y2: py(p.hi), style: `stroke:${colour}` }, group);
      const size = series.size ?? 5, look = { class: "dot", style: series.hollow ? `fill:var(--paper);stroke:${colour};stroke-width:2` : `fill:${colour}` };
      const dot = series.square
        ? element("rect", { x: px(p.x) - size, y: py(p.y) - size, width: 2 * size, height: 2 * size, ...look }, group)
        : element("circle", { cx: px(p.x), cy: py(p.y), r: size, ...look }, group);
      if (p.label) { // left of the dot, or right of it where the axis would be covered
        const fits = px(p.x) - 8 - 7 * p.label.length > left;
        const place = { x: px(p.x) + (fits ? -8 : 8), y: py(p.y) - 10, "text-anchor": fits ? "end" : "start" };
        element("text", place, group).textContent = p.label;
      }
      const tell = () => {
        tip.textContent = p.text;
        tip.style.display = "block";
        tip.style.left = Math.max(0, Math.min(px(p.x) + 10, width - tip.offsetWidth - 4)) + "px";
        tip.style.top = Math.max(0, py(p.y) - tip.offsetHeight - 8) + svg.offsetTop + "px";
        if (p.row) choose(p.row);
      };
      dot.addEventListener("mouseenter", tell);
      dot.addEventListener("mouseleave", () => { tip.style.display = "none"; });
      dot.addEventListener("click", () => {
        tell();
        const line = p.row && document.getElementById(p.row);
        if (line) line.scrollIntoView({ block: "center", behavior: "smooth" });
      });
    }
  }
}
for (const box of document.querySelectorAll(".chart")) {
  const chart = JSON.parse(box.querySelector("script").textContent), hidden = new Set();
  const legend = document.createElement("div");
  legend.className = "legend";
  chart.series.forEach((series, place) => {
    const label = document.createElement("label"), tick = document.createElement("input");
    Object.assign(tick, { type: "checkbox", checked: !series.off });
    if (series.off) hidden.add(place);
    tick.style.accentColor = `var(${series.colour})`;
    tick.addEventListener("change", () => { tick.checked ? hidden.delete(place) : hidden.add(place); draw(box, chart, hidden); });
    label.style.color = `var(${series.colour})`;
    label.append(tick, (series.square ? "■ " : series.hollow ? "○ " : series.line ? "─ " : "● ") + series.name);
    legend.append(label);
  });
  box.prepend(legend);
  draw(box, chart, hidden);
  new ResizeObserver(() => draw(box, chart, hidden)).observe(box);
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], value = (row, column) => {
    const cell = row.cells[column], number = parseFloat(cell.dataset.value ?? cell.textContent);
    return Number.isNaN(number) ? cell.textContent.trim() : number;
  };
  table.querySelectorAll("th").forEach((head, column) => {
    head.className = "sort";
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      table.querySelectorAll("th").forEach(each => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      [...body.rows].sort((one, other) => {
        const [a, b] = [value(one, column), value(other, column)];
        if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
        return (a < b ? -1 : a > b ? 1 : 0) * down;
      }).forEach(row => body.append(row));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
  for (const row of body.rows) if (row.id) { row.classList.add("linked"); row.addEventListener("click", () => choose(row.id)); }
}
