// @ts-check
// Draws the performance charts of a loop page from the page's JSON twin.
// The page reads without this file: every chart has its table beside it.

/** @typedef {{name: string, label: string, at: number[], values: (number|null)[], bounds: (number|null)[]}} Series */
/** @typedef {{at: number, until: number|null, kind: string, label: string, monitor: string}} Mark */

const Plot = /** @type {any} */ (window).uPlot;
const probe = document.body.appendChild(document.createElement("i"));

/** The colour of a CSS variable as a canvas takes it. @param {string} name */
function colour(name) {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

const marked = {
  refused: ["--red", []],
  passed: ["--green", [4, 4]],
  promoted: ["--green", []],
  aborted: ["--red", [4, 4]],
};

/**
 * Bands where an alert was open, lines where something was decided; below the curves.
 * @param {any} plot
 * @param {Mark[]} marks
 * @param {number} now
 */
function drawMarks(plot, marks, now) {
  const { ctx, bbox } = plot;
  const place = (/** @type {number} */ at) =>
    Math.min(Math.max(plot.valToPos(at, "x", true), bbox.left), bbox.left + bbox.width);
  ctx.save();
  for (const mark of marks) {
    if (mark.kind === "alert") {
      const [left, right] = [place(mark.at), place(mark.until ?? now)];
      ctx.globalAlpha = 0.18;
      ctx.fillStyle = colour("--amber");
      ctx.fillRect(left, bbox.top, Math.max(right - left, 2), bbox.height);
      continue;
    }
    const [name, dash] = marked[mark.kind];
    ctx.globalAlpha = 1;
    ctx.strokeStyle = colour(name);
    ctx.lineWidth = 2 * devicePixelRatio;
    ctx.setLineDash(dash.map((/** @type {number} */ n) => n * devicePixelRatio));
    ctx.beginPath();
    ctx.moveTo(place(mark.at), bbox.top);
    ctx.lineTo(place(mark.at), bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

/** @param {any} _ @param {number|null} value */
const figure = (_, value) => (value == null ? "-" : value.toPrecision(4));

/**
 * @param {HTMLElement} chart
 * @param {Series} series
 * @param {Mark[]} marks
 * @param {number} now
 */
function draw(chart, series, marks, now) {
  const target = /** @type {HTMLElement} */ (chart.querySelector(".plot"));
  const mine = marks.filter((mark) => !mark.monitor || mark.monitor === series.name);
  const axis = {
    stroke: () => colour("--soft"),
    grid: { stroke: () => colour("--line"), width: 1 },
    ticks: { stroke: () => colour("--line"), width: 1 },
  };
  const dates = [
    [3600 * 24 * 365, "{YYYY}", null, null, null, null, null, null, 1],
    [3600 * 24 * 28, "{MMM}", "\n{YYYY}", null, null, null, null, null, 1],
    [3600 * 24, "{D} {MMM}", "\n{YYYY}", null, null, null, null, null, 1],
    [3600, "{HH}:{mm}", "\n{D} {MMM}", null, "\n{D} {MMM}", null, null, null, 1],
  ];
  const lines = { spanGaps: true, points: { show: false }, value: figure };
  const options = {
    width: target.clientWidth || 800,
    height: 230,
    tzDate: (/** @type {number} */ at) => Plot.tzDate(new Date(at * 1000), "Etc/UTC"),
    hooks: { drawAxes: [(/** @type {any} */ plot) => drawMarks(plot, mine, now)] },
    axes: [{ ...axis, values: dates }, { ...axis, size: 60 }],
    series: [
      { label: "window", value: "{YYYY}-{MM}-{DD}" },
      { ...lines, label: series.name, stroke: () => colour("--blue"), width: 2 },
      { ...lines, label: "bound", stroke: () => colour("--amber"), width: 1.5, dash: [6, 4] },
    ],
  };
  const plot = new Plot(options, [series.at, series.values, series.bounds], target);
  new ResizeObserver(() => plot.setSize({ width: target.clientWidth, height: 230 })).observe(target);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw());
  chart.dataset.drawn = "yes";
}

const charts = /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("figure.chart"));
if (charts.length) {
  const page = await (await fetch(`${location.pathname}.json`)).json();
  for (const chart of charts) {
    const series = page.series.find((/** @type {Series} */ s) => s.name === chart.dataset.series);
    if (series) draw(chart, series, page.marks, page.now);
  }
}
