"use strict";
/* Tables that sort and filter, and the charts: the page reads without this script, which only adds to it. */

const text = (cell) => cell.textContent.trim();
const value = (cell) => ("v" in cell.dataset ? Number(cell.dataset.v) : text(cell));

function sortBy(table, column, header) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentElement.children) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // gaps last, whatever the direction
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return descending ? -order : order;
  };
  const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
  rows.sort(([a], [b]) => compare(a, b));
  body.append(...rows.map(([, row]) => row));
}

/* A word must occur in the row; `column=value`, `<`, `<=`, `>`, `>=`, `!=` compare, numbers as numbers. All terms must hold. */
function matcher(term, names) {
  const parts = /^([^<>=!]+)(<=|>=|!=|=|<|>)(.+)$/.exec(term);
  const column = parts ? names.indexOf(parts[1].toLowerCase()) : -1;
  if (column < 0) return (row) => row.textContent.toLowerCase().includes(term.toLowerCase());
  const [, , operator, wanted] = parts;
  return (row) => {
    const cell = row.cells[column];
    const numeric = "v" in cell.dataset && wanted.trim() !== "" && !Number.isNaN(Number(wanted));
    if (!numeric && !/=/.test(operator)) return false;
    const order = numeric
      ? Number(cell.dataset.v) - Number(wanted)
      : text(cell).toLowerCase() === wanted.toLowerCase() ? 0 : NaN;
    return { "=": order === 0, "!=": order !== 0, "<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0 }[operator];
  };
}

function activate(box) {
  const table = box.querySelector("table");
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => sortBy(table, column, header)));
  const input = box.querySelector("input[type=search]");
  if (!input) return;
  const names = headers.map((header) => header.dataset.name.toLowerCase());
  input.addEventListener("input", () => {
    const terms = input.value.split(/\s+/).filter(Boolean).map((term) => matcher(term, names));
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) row.hidden = !terms.every((holds) => holds(row));
    const shown = rows.filter((row) => !row.hidden).length;
    box.querySelector("output").textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
  });
}

const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const powers = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const power = (exponent) => "10" + String(exponent).replace("-", "⁻").replace(/\d/g, (digit) => powers[digit]);
const number = (x) => (x !== 0 && (Math.abs(x) >= 1e6 || Math.abs(x) < 1e-3) ? x.toExponential(3).replace("e+", "e") : digits.format(x));

function tick(x, index, ticks) {
  if (this.type !== "logarithmic") return Math.abs(x) >= 1e4 ? compact.format(x) : number(x);
  if (x <= 0) return "";
  const exponent = Math.floor(Math.log10(x) + 1e-9);
  const lead = Math.round(x / 10 ** exponent);
  const decades = Math.log10(this.max / this.min);
  if (lead !== 1 && !(decades < 2 && (lead === 2 || lead === 5))) return "";
  return exponent < -2 || exponent > 3 ? (lead === 1 ? "" : `${lead}·`) + power(exponent) : digits.format(x);
}

/* Standard deviations over seeds, as bars through the means. */
const bars = {
  id: "bars",
  afterDatasetsDraw(chart) {
    const { ctx, chartArea: area, scales: { y } } = chart;
    ctx.save();
    ctx.beginPath();
    ctx.rect(area.left, area.top, area.width, area.height);
    ctx.clip();
    chart.data.datasets.forEach((dataset, index) => {
      if (!dataset.means || !chart.isDatasetVisible(index)) return;
      ctx.strokeStyle = dataset.borderColor;
      ctx.lineWidth = 1.2;
      chart.getDatasetMeta(index).data.forEach((mark, place) => {
        const { y: mean, sd } = dataset.data[place];
        if (!sd) return;
        const low = mean - sd > 0 || y.type !== "logarithmic" ? y.getPixelForValue(mean - sd) : area.bottom;
        ctx.beginPath();
        ctx.moveTo(mark.x, y.getPixelForValue(mean + sd));
        ctx.lineTo(mark.x, low);
        ctx.stroke();
      });
    });
    ctx.restore();
  },
};

function datasets(chart, group) {
  const found = [];
  for (const one of chart.series.filter((series) => !group || series.group === group)) {
    const label = group ? one.label : `${one.group} ${one.label}`;
    const look = { label, borderColor: one.colour, backgroundColor: one.colour, pointStyle: one.mark, borderDash: one.dash, borderWidth: 1.8 };
    const points = one.points.map(([x, y, run, words]) => ({ x, y, run: run ?? one.run, words }));
    const single = one.means.length === 0;
    if (!single) {
      const data = one.means.map(([x, y, sd, n]) => ({ x, y, sd, n }));
      found.push({ ...look, data, means: true, showLine: true, pointRadius: 4, pointHoverRadius: 6, order: 1 });
    }
    const radius = chart.small ? 0 : single ? 4 : 2;
    found.push({ ...look, data: points, runs: !single, showLine: single, pointRadius: radius, pointHoverRadius: radius + 2, pointHitRadius: chart.small ? 6 : 2, order: 2 });
  }
  return found;
}

/* The marks under the pointer, at most three. A mean over seeds speaks for its runs and names them. */
function tooltip(spec) {
  const name = ({ raw, dataset }) => (raw.run ? raw.run.split(/, |: /) : [`${dataset.label}, mean of ${raw.n} seeds`]);
  const runsOf = ({ raw, dataset, chart }) =>
    chart.data.datasets
      .filter((other) => dataset.means && other.runs && other.label === dataset.label)
      .flatMap((other) => other.data.filter(({ x }) => x === raw.x).map(({ run, y }) => `${run}: ${number(y)}`));
  const kept = (item, index, items) => {
    const means = items.filter((other) => other.dataset.means).map((other) => other.dataset.label);
    const shown = items.filter((other) => !other.dataset.runs || !means.includes(other.dataset.label));
    return shown.indexOf(item) >= 0 && shown.indexOf(item) < 3;
  };
  return {
    callbacks: {
      title: ([item]) => (item ? name(item) : []),
      label: (item) => {
        const { raw, dataset, chart } = item;
        const first = chart.tooltip.dataPoints[0];
        return [
          ...(item.datasetIndex === first.datasetIndex && item.dataIndex === first.dataIndex ? [] : ["", ...name(item)]),
          ...(raw.words ? [`${dataset.label}, ${raw.words}`] : []),
          `${spec.y.label}: ${number(raw.y)}${raw.sd ? ` ± ${number(raw.sd)} s.d.` : ""}`,
          `${spec.x.label}: ${number(raw.x)}`,
          ...runsOf(item),
        ];
      },
    },
    filter: kept,
    displayColors: false,
  };
}

/* A name in the legend stands for a line and for the runs behind it. */
function toggle(event, item, legend) {
  const { chart } = legend;
  const show = !chart.isDatasetVisible(item.datasetIndex);
  chart.data.datasets.forEach((dataset, index) => {
    if (dataset.label === item.text) chart.setDatasetVisibility(index, show);
  });
  chart.update();
}

function axis(spec, zero = false) {
  return {
    type: spec.log ? "logarithmic" : "linear",
    title: { display: true, text: spec.label },
    ticks: { callback: tick, maxRotation: 0, autoSkipPadding: 12, includeBounds: false },
    grid: { color: "#eee" },
    ...(spec.log ? {} : { suggestedMin: spec.min, max: spec.max, beginAtZero: zero }),
  };
}

function draw(spec) {
  const figure = document.getElementById(`chart-${spec.id}`);
  const group = figure.querySelector("select");
  const chart = new Chart(figure.querySelector("canvas"), {
    type: "scatter",
    data: { datasets: datasets(spec, group ? group.value : spec.group) },
    options: {
      animation: false,
      responsive: true,
      maintainAspectRatio: false,
      devicePixelRatio: Math.max(2, window.devicePixelRatio),
      interaction: { mode: "point" },
      scales: { x: axis(spec.x), y: axis(spec.y, spec.zero) },
      plugins: {
        legend: { onClick: toggle, labels: { usePointStyle: true, boxHeight: 7, filter: (item, data) => !data.datasets[item.datasetIndex].runs } },
        tooltip: tooltip(spec),
      },
    },
    plugins: [bars],
  });
  if (group) group.addEventListener("change", () => { chart.data.datasets = datasets(spec, group.value); chart.update(); });
  for (const box of figure.querySelectorAll("input[type=checkbox]")) {
    box.addEventListener("change", () => {
      chart.options.scales[box.name] = axis({ ...spec[box.name], log: box.checked }, box.name === "y" && spec.zero);
      chart.update();
    });
  }
  return chart;
}

Chart.defaults.font.family = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
Chart.defaults.color = "#222";
document.querySelectorAll(".table").forEach(activate);
const drawn = JSON.parse(document.getElementById("chart-data").textContent).map(draw);
window.addEventListener("beforeprint", () => drawn.forEach((chart) => chart.resize(660, 340)));
window.addEventListener("afterprint", () => drawn.forEach((chart) => chart.resize()));
